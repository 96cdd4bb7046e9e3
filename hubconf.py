"""Generators through torch.hub: torch.hub.load(REPOSITORY, "translator", "chart", source="local")."""

from pathlib import Path
from typing import Any

dependencies = ["torch", "torchvision", "numpy", "PIL", "safetensors", "tqdm", "filelock"]

WEIGHTS = Path(__file__).parent / "weights"


def translator(source: str = "chart", *, direction: str | None = None, **keywords: Any) -> Any:
    """A trained generator as a function from images to images, `inference.Translator`.

    Args:
        source: chart or emoji, the weights that ship, or the folder of a run or a file, as for `Translator.load`.
        direction: AtoB or BtoA; None takes AtoB of bundled weights, and the direction of training otherwise.
        keywords: further arguments of `Translator.load`, such as device or tile.

    Raises:
        ValueError: there are no such weights.
    """
    from inference import Translator

    bundled = {
        path.stem.removeprefix(f"{source}_"): path
        for path in WEIGHTS.glob("*.safetensors")
        if path.stem.startswith(f"{source}_")
    }
    if not bundled:
        return Translator.load(source, direction=direction, **keywords)
    if (wanted := direction or "AtoB") not in bundled:
        raise ValueError(f"direction {direction!r}: choose {' or '.join(sorted(bundled))}")
    return Translator.load(bundled[wanted], **keywords)
