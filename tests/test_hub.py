"""torch.hub on the clone, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from inference import Translator
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT


def test_hub_loads_the_weights_that_ship(tmp_path):
    """From another folder, so that the clone is not on the path."""
    photo = draw_shapes("photo", (40, 30))
    photo.save(tmp_path / "photo.png")
    code = (
        "import torch; from PIL import Image; "
        f"net = torch.hub.load({str(ROOT)!r}, 'translator', 'chart', source='local', device='cpu'); "
        "net(Image.open('photo.png')).save('made.png')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = Translator.load(ROOT / "weights" / "chart_AtoB.safetensors", device="cpu")(photo)
    with Image.open(tmp_path / "made.png") as made:
        assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_hub_takes_files_too():
    made = [
        torch.hub.load(str(ROOT), "translator", source, source="local", device="cpu")(torch.zeros(3, 8, 8))
        for source in ("emoji", str(ROOT / "weights" / "emoji_AtoB.safetensors"))
    ]
    assert torch.equal(*made)


def test_hub_knows_the_other_direction_and_refuses_others():
    x = torch.zeros(3, 8, 8)
    made = torch.hub.load(str(ROOT), "translator", "chart", direction="BtoA", source="local", device="cpu")(x)
    assert torch.equal(made, Translator.load(ROOT / "weights" / "chart_BtoA.safetensors", device="cpu")(x))
    with pytest.raises(ValueError, match="direction 'BtoC': choose AtoB or BtoA"):
        torch.hub.load(str(ROOT), "translator", direction="BtoC", source="local")
