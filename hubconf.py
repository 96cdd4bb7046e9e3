"""Generators through torch.hub: torch.hub.load(REPOSITORY, "translator", "chart", source="local")."""

from pathlib import Path
from typing import Any

dependencies = ["torch", "torchvision", "numpy", "PIL", "safetensors", "tqdm", "filelock"]

WEIGHTS = Path(__file__).parent / "weights"
DIRECTIONS = ("AtoB", "BtoA")


def translator(source: str = "chart", *, direction: str | None = None, **keywords: Any) -> Any:
    """A trained generator as a function from images to images, `inference.Translator`.

    Args:
        source: chart, the weights that ship, or the folder of a run or a file, as for `Translator.load`.
        direction: AtoB or BtoA; None takes AtoB of chart, and the direction of training otherwise.
        keywords: further arguments of `Translator.load`, such as device or tile.

    Raises:
        ValueError: there are no such weights.
    """
    from inference import Translator

    if source != "chart":
        return Translator.load(source, direction=direction, **keywords)
    if direction not in (None, *DIRECTIONS):
        raise ValueError(f"direction {direction!r}: choose {' or '.join(DIRECTIONS)}")
    return Translator.load(WEIGHTS / f"chart_{direction or 'AtoB'}.safetensors", **keywords)
