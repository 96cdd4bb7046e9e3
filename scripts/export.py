"""Export a trained generator for other programs: python -m scripts.export --name NAME --format onnx.

A file takes images; that of a generator of sagan takes noise (B, z_dim + n_classes).
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data import create_dataset
from data.image_folder import list_images
from inference.export import DTYPES, SUFFIXES, export, load_exported, random_images
from inference.portable import Portable, make_portable
from inference.trained import Trained, find_trained
from inference.translator import Translator, as_tensor
from models.networks.sagan import NoiseGenerator
from options.parser import script_parser
from scripts.generators import (
    add_generator_flags,
    check_generator,
    describe,
    describe_noise,
    is_sagan,
    load_for_export,
    without_dropout,
)
from util.command import run_command
from util.files import check_kept

EXAMPLES = (
    "--name mine --format onnx",
    "--weights weights/chart_AtoB.safetensors --format onnx --dtype fp16 --out chart.onnx",
    "--name mine --format onnx --dtype int8 --calibrate mydata/trainA",
    "--weights weights/cats.safetensors --format torch_export",
)
LARGEST_ERROR = 0.01  # of fp32, in [-1, 1]: instance norm of large images differs by 0.005 between kernels
TIMED = 256  # px of a side of the image that is timed
FEW = ("--num_test", "16", "--batch_size", "7")  # flags of test.py: the samples to compare, in batches of two sizes
CALIBRATED = 16  # images at most: a range of activations hardly changes with more


@dataclass(frozen=True)
class Subject:
    """A generator to export, and what its file has to do.

    Attributes:
        net: ready for export.
        notes: see `inference.export.read_notes`.
        inputs: to compare the file with PyTorch.
        expected: what PyTorch makes of them.
        timed: an input whose time is measured.
        rate: the images per second that PyTorch makes of it.
        reload: a safetensors file as a function.
        calibration: images for int8.
    """

    net: Portable
    notes: dict[str, Any]
    inputs: list[Tensor]
    expected: list[Tensor]
    timed: Tensor
    rate: float
    reload: Callable[[Path], Callable[[Tensor], Tensor]]
    calibration: Iterable[Tensor] = ()


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Load, export, and compare the file with PyTorch. Returns the exit status."""
    args = parse(argv)
    subject = from_noise(args) if is_sagan(args) else translating(args)
    path: Path = args.out or Path(f"{args.name or args.weights.stem}{SUFFIXES[args.format]}")
    if args.weights:
        check_kept(args.weights, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    export(subject.net, path, args.format, subject.notes, dtype=args.dtype, calibration=subject.calibration)
    exported = subject.reload(path) if args.format == "safetensors" else load_exported(path, args.format)
    compare(exported, subject, path, args)
    return 0


def translating(args: argparse.Namespace) -> Subject:
    """A generator that translates images."""
    translator, net = load_for_export(args)
    stride = net.net.stride
    assert isinstance(stride, int)
    images, timed = random_images(translator.input_nc, stride=stride), torch.zeros(1, translator.input_nc, TIMED, TIMED)
    expected, rate = [translator(image) for image in images], images_per_second(translator, timed)
    portable = make_portable(net)
    notes = describe(translator, portable, args, dtype=args.dtype)
    calibration = calibration_images(args.calibrate, translator) if args.calibrate else ()

    def reload(path: Path) -> Callable[[Tensor], Tensor]:
        return without_dropout(Translator.load(path, evaluate=args.eval, device="cpu"))

    return Subject(portable, notes, images, expected, timed, rate, reload, calibration)


def from_noise(args: argparse.Namespace) -> Subject:
    """A generator of sagan.

    Raises:
        ValueError: the flags are for generators that translate images.
    """
    for flag, value in (("direction", args.direction), ("calibrate", args.calibrate)):
        if value:
            raise ValueError(f"--{flag} {value}: a generator of sagan takes no images, but noise")
    source = ["--weights", str(args.weights)] if args.weights else ["--name", args.name]
    flags = ["--checkpoints_dir", str(args.checkpoints_dir), *(["--no_ema"] if args.no_ema else [])]
    flags += ["--epoch", args.epoch] if args.epoch != "latest" else []
    trained = find_trained([*source, *flags, *FEW])
    net = load_sagan(trained)
    noise = [batch["z"] for batch in create_dataset(trained.opt)]
    expected, rate = [net(z) for z in noise], images_per_second(net, noise[0])
    notes = describe_noise(trained, dtype=args.dtype)

    def reload(path: Path) -> Callable[[Tensor], Tensor]:
        return load_sagan(find_trained(["--weights", str(path)]))

    return Subject(make_portable(net), notes, noise, expected, noise[0], rate, reload)


def load_sagan(trained: Trained) -> NoiseGenerator:
    """A generator of sagan on the CPU."""
    model, _ = trained.build(torch.device("cpu"))
    net = model.get_submodule("netG")
    assert isinstance(net, NoiseGenerator)
    return net


def compare(exported: Callable[[Tensor], Tensor], subject: Subject, path: Path, args: argparse.Namespace) -> None:
    """Print how much a file differs from PyTorch, and its speed. ValueError if that is more than rounding."""
    errors = [(exported(x) - truth).abs() for x, truth in zip(subject.inputs, subject.expected, strict=True)]
    largest = torch.stack([error.max() for error in errors]).max().item()  # NaN if there is one, unlike max of Python
    mean = statistics.mean(error.mean().item() for error in errors)
    sizes = ", ".join(f"{made.shape[0]}x{made.shape[3]}x{made.shape[2]}" for made in subject.expected)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {args.format} {args.dtype}")
    print(f"difference from PyTorch in [-1, 1]: {largest:.2g} at most, {mean:.2g} on average (sizes {sizes})")
    if not math.isfinite(largest) or (args.dtype == "fp32" and largest > LARGEST_ERROR):
        raise ValueError(f"{path} differs from PyTorch by {largest:.2g}, which is more than rounding: do not use it")
    height, width = exported(subject.timed).shape[2:]
    rate = images_per_second(exported, subject.timed)
    print(f"images/s at {width}x{height}: PyTorch {subject.rate:.2f}, exported file {rate:.2f}")


def images_per_second(run: Callable[[Tensor], Tensor], batch: Tensor) -> float:
    """The median of three runs, after one that is not timed."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return len(batch) / statistics.median(times[1:])


def calibration_images(folder: Path, translator: Translator) -> Iterator[Tensor]:
    """The first images of a folder, (1, C, H, W) in [-1, 1].

    Raises:
        ValueError: there is none.
    """
    paths = list_images(folder, CALIBRATED, translator.slice_axis)
    if not paths:
        raise ValueError(f"--calibrate {folder}: there are no images")
    for path in tqdm(paths, desc="calibration", unit="image", disable=None):
        yield as_tensor(translator.reader(path), channels=translator.input_nc)[None]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.export", __doc__, *EXAMPLES)
    add = parser.add_argument
    add_generator_flags(parser)
    text = "torch_export takes sides above the stride (4 pixels, of U-Nets 128 or 256), onnx and torchscript from 5 on"
    add("--format", choices=tuple(SUFFIXES), default="onnx", help=f"{text} (default: onnx)")
    add("--out", type=Path, help="the file (default: NAME with the suffix of the format)")
    text = "of weights and layers: fp16 and int8 for onnx, fp16 for safetensors; no int8 for sagan (default: fp32)"
    add("--dtype", choices=DTYPES["onnx"], default="fp32", help=text)
    add("--calibrate", type=Path, metavar="FOLDER", help=f"images for --dtype int8, {CALIBRATED} at most")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    check_generator(parser, args)
    known = DTYPES.get(args.format, ("fp32",))
    if args.dtype not in known:
        parser.error(f"--dtype {args.dtype} does not suit --format {args.format}: choose from {', '.join(known)}")
    if (args.dtype == "int8") != bool(args.calibrate):
        parser.error("--dtype int8 needs --calibrate FOLDER with images like those to translate, and nothing else does")
    return args


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
