"""Export a trained generator for other programs: python -m scripts.export --name NAME --format onnx.

A generator of sagan becomes one safetensors file for test.py --weights.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import create_dataset
from data.image_folder import list_images
from inference.export import DTYPES, SUFFIXES, export, load_exported, make_portable, random_images
from inference.trained import Trained, find_trained, noise_notes
from inference.translator import Translator, as_tensor
from models.networks.layers import remove_spectral_norm
from models.weights import in_dtype, write_safetensors
from options.base_options import read_saved
from options.parser import script_parser
from scripts.generators import add_generator_flags, check_generator, describe, load_for_export, without_dropout
from util.command import run_command
from util.files import atomic

EXAMPLES = (
    "--name mine --format onnx",
    "--weights weights/chart_AtoB.safetensors --format onnx --dtype fp16 --out chart.onnx",
    "--name mine --format onnx --dtype int8 --calibrate mydata/trainA",
    "--name cats --format safetensors --dtype fp16",
)
LARGEST_ERROR = 0.01  # of fp32, in [-1, 1]: instance norm of large images differs by 0.005 between kernels
TIMED = 256  # px of a side of the image that is timed
FEW = ("--num_test", "16", "--batch_size", "16")  # flags of test.py: the samples to compare
CALIBRATED = 16  # images at most: a range of activations hardly changes with more


def main(argv: list[str] | None = None) -> int:
    """Load, export, and compare the file with PyTorch. Returns the exit status."""
    args = parse(argv)
    if args.name and read_saved(args.checkpoints_dir / args.name).get("model") == "sagan":
        return export_sagan(args)
    translator, net = load_for_export(args)
    channels, stride = translator.input_nc, net.net.stride
    assert isinstance(stride, int)
    images = random_images(channels, stride=stride)
    expected = [translator(image) for image in images]
    example = torch.zeros(1, channels, TIMED, TIMED)
    rates = {"PyTorch": images_per_second(translator, example)}
    path = target(args)
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
    sizes = ", ".join(f"{image.shape[0]}x{image.shape[3]}x{image.shape[2]}" for image in images)
    check(path, args, errors, f"sizes {sizes}")
    print(f"images/s at {TIMED}x{TIMED}: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    return 0


def export_sagan(args: argparse.Namespace) -> int:
    """Write the generator of a run of sagan, and compare the samples of file and run. Returns the exit status.

    Raises:
        ValueError: the flags are for generators that translate.
    """
    if args.format != "safetensors" or args.direction:
        raise ValueError("a generator of sagan is exported with --format safetensors, and without --direction")
    run = ["--name", args.name, "--checkpoints_dir", str(args.checkpoints_dir), "--epoch", args.epoch]
    trained = find_trained([*run, *(["--no_ema"] if args.no_ema else []), *FEW])
    net, expected = samples(trained)
    remove_spectral_norm(net)
    weights, path = net.state_dict(), target(args)
    with atomic(path) as draft:
        weights = in_dtype(weights, torch.float16) if args.dtype == "fp16" else weights
        write_safetensors(weights, draft, notes=json.dumps(noise_notes(trained)))
    _, made = samples(find_trained(["--weights", str(path), *FEW]))
    check(path, args, [(made - expected).abs()], f"{len(made)} samples")
    return 0


def samples(trained: Trained) -> tuple[nn.Module, Tensor]:
    """A generator of sagan, and its samples (B, C, S, S) in [-1, 1] for the flags of `trained`."""
    model, _ = trained.build(torch.device("cpu"))
    with torch.no_grad():
        made = torch.cat([model(batch)["sample"] for batch in create_dataset(trained.opt)])
    return model.get_submodule("netG"), made


def target(args: argparse.Namespace) -> Path:
    """The path of the file to write, in an existing folder."""
    path: Path = args.out or Path(f"{args.name or args.weights.stem}{SUFFIXES[args.format]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check(path: Path, args: argparse.Namespace, errors: list[Tensor], compared: str) -> None:
    """Print how much a file differs from PyTorch. ValueError if that is more than rounding."""
    largest, mean = max(error.max().item() for error in errors), statistics.mean(e.mean().item() for e in errors)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {args.format} {args.dtype}")
    print(f"difference from PyTorch in [-1, 1]: {largest:.2g} at most, {mean:.2g} on average ({compared})")
    if args.dtype == "fp32" and not largest <= LARGEST_ERROR:
        raise ValueError(f"{path} differs from PyTorch by {largest:.2g}, which is more than rounding")


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
