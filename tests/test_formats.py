"""Domains of other dtypes, value ranges, channels and opacity: every entrance reads A and writes B, and back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import test as testing
import train as training
from data.arrays import has_alpha, read_array
from inference import Translator
from scripts import translate
from tests.test_cli import train
from tests.test_data_depth import DEEP, write_domains
from util.images import PixelFormat, read_formats, write_array

SIZE = (20, 24)  # height and width: multiples of the stride of the generator, above 16 channels
ROOMY = {"uint8": 255, "uint16": 65535, "int16": 3000, "int32": 70000, "float32": 2.5, "float64": 1.0}


@dataclass(frozen=True)
class Domain:
    """What the files of a domain hold."""

    fmt: PixelFormat
    channels: int
    suffix: str

    @property
    def flag(self) -> str:
        """The value for --value_range_A or _B; empty for 8 bits."""
        return "" if self.fmt.is_8bit else "{},{}".format(*self.fmt.value_range)

    def write(self, path: Path, seed: int) -> None:
        """Write a random image that uses the whole range."""
        low, high = self.fmt.value_range
        array = np.random.default_rng(seed).uniform(low, high, (*SIZE, self.channels))
        write_array(array.astype(self.fmt.dtype), path, alpha=self.fmt.alpha)


@st.composite
def domains(draw):
    dtype = draw(st.sampled_from(sorted(ROOMY)))
    channels = draw(st.sampled_from([1, 2, 3, 4, 5]))
    if dtype == "uint8":
        fmt = PixelFormat(alpha=channels in (2, 4) and draw(st.booleans()))
        suffix = ".png" if channels in (1, 3) or fmt.alpha else ".tif"
        return Domain(fmt, channels, suffix)
    high = ROOMY[dtype]
    low = 0.0 if dtype.startswith("u") else draw(st.sampled_from([0.0, -high / 2]))
    fmt = PixelFormat(dtype, (low, high), alpha=channels in (2, 4) and draw(st.booleans()))
    return Domain(fmt, channels, ".tif" if fmt.alpha else draw(st.sampled_from([".tif", ".npy"])))


def by_formula(made: torch.Tensor, fmt: PixelFormat) -> np.ndarray:
    """(C, H, W) in [-1, 1] as the values of a format, in float64, not rounded: (H, W, C)."""
    low, high = fmt.value_range
    return ((made.double().clamp(-1, 1) + 1) / 2 * (high - low) + low).permute(1, 2, 0).numpy()


def assert_made(array: np.ndarray, expected: np.ndarray, fmt: PixelFormat) -> None:
    """Assert that a result has the format and, up to rounding, the values."""
    array = array if array.ndim == 3 else array[..., None]
    assert array.dtype == fmt.dtype and array.shape == expected.shape
    span = fmt.value_range[1] - fmt.value_range[0]
    rounding = 0.5 if np.dtype(fmt.dtype).kind in "ui" else 0
    assert np.abs(array - expected).max() <= rounding + 1e-5 * span


def read_result(stem: Path, fmt: PixelFormat, channels: int) -> np.ndarray:
    """The result that is complete: the .tif if there is one, else the .png."""
    path = stem.with_name(f"{stem.name}.tif")
    path = path if path.exists() else path.with_suffix(".png")
    assert channels not in (2, 4) or has_alpha(path) == fmt.alpha
    return read_array(path)


@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(A=domains(), B=domains(), trained=st.sampled_from(["AtoB", "BtoA"]))
def test_every_entrance_writes_the_format_of_the_target(A, B, trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("formats")
    sides = {"A": A, "B": B}
    for phase in ("train", "test"):
        for letter, domain in sides.items():
            (root / f"{phase}{letter}").mkdir()
            domain.write(root / f"{phase}{letter}" / f"0{domain.suffix}", seed=len(phase))
    source, target = sides[trained[0]], sides[trained[-1]]
    channels = ["--input_nc", str(source.channels), "--output_nc", str(target.channels), "--lambda_identity", "0"]
    ranges = [f"--value_range_{letter}={domain.flag}" for letter, domain in sides.items() if domain.flag]
    run = train(
        root, "--dataroot", root, "--direction", trained, *channels, *ranges, "--preprocess", "none", "--netD", "pixel",
        "--no_html", "--n_epochs_decay", "0",
    )  # fmt: skip
    assert read_formats(run) == {letter: domain.fmt for letter, domain in sides.items()}

    places = ["--checkpoints_dir", str(root), "--name", "run", "--device", "cpu"]
    for direction in ("AtoB", "BtoA"):
        source, target = sides[direction[0]], sides[direction[-1]]
        path = root / f"test{direction[0]}" / f"0{source.suffix}"
        translator = Translator.load(run, direction=direction, device="cpu")
        array = read_array(path)
        low, high = source.fmt.value_range
        x = torch.from_numpy(((array.astype(np.float64) - low) / (high - low) * 2 - 1).astype(np.float32))
        expected = by_formula(translator(x.permute(2, 0, 1)), target.fmt)

        results = {"Translator": translator(array)}
        file = root / f"{direction}.npy"
        assert translate.main([str(path), str(file), *places, "--direction", direction]) == 0
        results["translate FILE"] = read_array(file)
        folder = root / f"out {direction}"
        assert translate.main([str(path.parent), str(folder), *places, "--direction", direction]) == 0
        results["translate FOLDER"] = read_result(folder / "0", target.fmt, target.channels)
        for model in ([], ["--model", "test", "--dataroot", str(path.parent)]):
            where = ["--results_dir", str(root / f"{direction} {bool(model)}"), "--direction", direction]
            assert testing.main([*places, *where, *model]) == 0
            stem = root / f"{direction} {bool(model)}" / "run" / "test_latest" / "images"
            stem /= "0_fake" if model else "0_fake_B"
            results[f"test.py {model[:2]}"] = read_result(stem, target.fmt, target.channels)
        weights = run / f"latest_net_G_{'A' if direction == trained else 'B'}.pth"
        where = ["--results_dir", str(root / f"{direction} file"), "--dataroot", str(root), "--device", "cpu"]
        assert testing.main(["--weights", str(weights), *where]) == 0
        stem = root / f"{direction} file" / weights.stem / "test_latest" / "images" / "0_fake"
        results["test.py --weights"] = read_result(stem, target.fmt, target.channels)
        for entrance, made in results.items():
            try:
                assert_made(made, expected, target.fmt)
            except AssertionError as error:
                raise AssertionError(f"{entrance}, {direction}: {source} to {target}") from error


def test_a_resumed_run_says_that_images_have_another_format(tmp_path, capsys):
    write_domains(tmp_path)
    flags = ["--dataroot", tmp_path, *DEEP, "--n_epochs_decay", "0", "--netD", "pixel", "--no_html"]
    train(tmp_path / "runs", *flags, "--value_range_B", "0,1")
    argv = ["--checkpoints_dir", str(tmp_path / "runs"), "--name", "run", "--continue_train", "--n_epochs", "2"]
    assert training.main([*argv, "--override", "--value_range_B", "0,2"]) == 0
    assert "images of B were float32 from 0 to 1 so far, and are float32 from 0 to 2" in capsys.readouterr().out
