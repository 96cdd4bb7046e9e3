"""What all tests share."""

import os
import random
import runpy
import shutil
import signal
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

pytest.register_assert_rewrite("tests.browser", "tests.helpers")

from tests.browser import Browser  # noqa: E402
from util.command import configure_logging  # noqa: E402

configure_logging()

# datasets/ is a folder of scripts and images, not a package
COMBINE = runpy.run_path(str(Path(__file__).parent.parent / "datasets" / "combine_A_and_B.py"))

# in the background of a shell, and under nohup, the tests and the scripts they start would ignore these
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tiny networks run faster with one thread, and nothing depends on measured times.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts that tests start


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let random numbers not depend on the tests that ran before in this process."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep features of real images out of the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def draw_shapes(seed: str, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A color image of a few random shapes, always the same for the same seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.choices(range(256), k=3)))
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
        left, top = rng.randrange(size[0] - 8), rng.randrange(size[1] - 8)
        right, bottom = left + rng.randint(6, 24), top + rng.randint(6, 24)
        shape((left, top, right, bottom), fill=tuple(rng.choices(range(256), k=3)))
    return image


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two domains: trainA, trainB, testA, testB with five images of 40x36 pixels each."""
    root = tmp_path_factory.mktemp("tiny_data")
    for folder in ("trainA", "trainB", "testA", "testB"):
        (root / folder).mkdir()
        for name in ("0.png", "1.png", "2.png", "3.jpg", "4.jpg"):
            draw_shapes(f"{folder}/{name}").save(root / folder / name)
    return root


@pytest.fixture(scope="session")
def paired_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `tiny_data` side by side: train and test with five files of 80x36 pixels each."""
    root = tmp_path_factory.mktemp("paired_data")
    for phase in ("train", "test"):
        COMBINE["combine"](tiny_data / f"{phase}A", tiny_data / f"{phase}B", root / phase)
    return root


@dataclass(frozen=True)
class Disk:
    """A disk in memory."""

    folder: Path

    def remount(self, options: str) -> None:
        """Change it by options of mount, such as "ro" or "size=BYTES"."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """Makes a Disk with options of mount, such as "size=BYTES", where that is permitted."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Disk:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a disk takes root")
        return Disk(folder)

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None and os.environ.get("CI") != "true":
        pytest.skip("needs Chromium: apt-get install chromium")
    assert executable, "Chromium is missing: apt-get install chromium"
    with closing(Browser(executable, tmp_path_factory.mktemp("chromium"))) as browser:
        yield browser
