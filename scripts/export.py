"""Export a trained generator for other programs: python -m scripts.export --name NAME --format onnx."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.image_folder import list_images
from inference.export import DTYPES, SUFFIXES, export, load_exported, make_portable, random_images
from inference.translator import Translator, as_tensor
from options.parser import script_parser
from scripts.generators import add_generator_flags, check_generator, describe, load_for_export, without_dropout
from util.command import run_command

EXAMPLES = (
    "--name mine --format onnx",
    "--weights weights/chart_AtoB.safetensors --format onnx --dtype fp16 --out chart.onnx",
    "--name mine --format onnx --dtype int8 --calibrate mydata/trainA",
)
LARGEST_ERROR = 0.01  # of fp32, in [-1, 1]: instance norm of large images differs by 0.005 between kernels
TIMED = 256  # px of a side of the image that is timed
CALIBRATED = 16  # images at most: a range of activations hardly changes with more


def main(argv: list[str] | None = None) -> int:
    """Load, export, and compare the file with PyTorch. Returns the exit status."""
    args = parse(argv)
    translator, net = load_for_export(args)
    channels, stride = translator.input_nc, net.net.stride
    assert isinstance(stride, int)
    images = random_images(channels, stride=stride)
    expected = [translator(image) for image in images]
    example = torch.zeros(1, channels, TIMED, TIMED)
    rates = {"PyTorch": images_per_second(translator, example)}
    path = args.out or Path(f"{args.name or args.weights.stem}{SUFFIXES[args.format]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    portable = make_portable(net)
    notes = describe(translator, portable, args, dtype=args.dtype)
    calibration = calibration_images(args.calibrate, translator) if args.calibrate else iter(())
    export(portable, path, args.format, notes, dtype=args.dtype, calibration=calibration)
    if args.format == "safetensors":
        loaded = Translator.load(path, evaluate=args.eval, device="cpu")
        exported: Callable[[Tensor], Tensor] = without_dropout(loaded)
    else:
        exported = load_exported(path, args.format)
    with torch.no_grad():
        errors = [(exported(image) - truth).abs() for image, truth in zip(images, expected, strict=True)]
        rates["exported file"] = images_per_second(exported, example)
    largest, mean = max(error.max().item() for error in errors), statistics.mean(e.mean().item() for e in errors)
    sizes = ", ".join(f"{image.shape[0]}x{image.shape[3]}x{image.shape[2]}" for image in images)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {args.format} {args.dtype}")
    print(f"difference from PyTorch in [-1, 1]: {largest:.2g} at most, {mean:.2g} on average (sizes {sizes})")
    print(f"images/s at {TIMED}x{TIMED}: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    if args.dtype == "fp32" and not largest <= LARGEST_ERROR:
        raise ValueError(f"{path} differs from PyTorch by {largest:.2g}, which is more than rounding")
    return 0


def images_per_second(run: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """The median of three runs, after one that is not timed."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times[1:])


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
    text = "of weights and layers: fp16 and int8 for onnx, fp16 for safetensors (default: fp32)"
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
