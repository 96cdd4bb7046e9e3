"""Translate an image or a folder of images: python -m scripts.translate in.jpg out.png --name NAME."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from data.check import skip_bad
from data.image_file import ImageReader
from data.image_folder import EXTENSIONS, is_image, list_images
from inference.tiles import OVERLAP, Tiled
from inference.translator import Translator, as_tensor
from inference.windows import TiffImage, translate_file
from options import values
from util.command import run_command
from util.device import select_device
from util.images import PixelFormat, is_viewable, save_image
from util.threads import choose_threads


def main(argv: list[str] | None = None) -> int:
    """Load the generator and translate every image. Returns the exit status."""
    args = parse(argv)
    pairs = plan(args.source, args.target)
    source = args.weights or args.checkpoints_dir / args.name
    device = select_device(args.device)
    threads = choose_threads(args.cpu_threads, device=device)
    translator = Translator.load(
        source,
        direction=args.direction,
        epoch=args.epoch,
        ema=not args.no_ema,
        evaluate=args.eval,
        device=device,
        tile=args.tile,
        **({} if args.tile_overlap is None else {"tile_overlap": args.tile_overlap}),
    )
    value_range = values.bounds(args.value_range) or translator.value_range
    reader = ImageReader(channels=translator.input_nc, value_range=value_range)
    if args.skip_bad_images:
        good = set(skip_bad([path for path, _ in pairs], reader))
        pairs = [pair for pair in pairs if pair[0] in good]
    if args.value_range and all(reader.format(path) == PixelFormat() for path, _ in pairs):
        raise ValueError(f"--value_range {args.value_range}: these images have 8 bits, which are always 0 to 255")
    for path, target in tqdm(pairs, unit="image", disable=None if len(pairs) > 1 else True):
        if isinstance(translator.net, Tiled) and TiffImage.suits(path, translator.input_nc):
            translate_file(translator.net, path, target, reader, is_chosen=target == args.target)
            continue
        image, fmt = as_tensor(reader(path), channels=translator.input_nc), reader.format(path)
        with threads.timed({"A": image}):
            made = translator(image)
        if target != args.target and not is_viewable(made, fmt):
            target = target.with_suffix(".tif")  # of the depth and channels that PNG cannot hold
        save_image(made, target, fmt)
    print(f"{len(pairs)} translated by {source}: {args.target}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts.translate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="an image, or a folder of images with its subfolders")
    text = "file for the result, or folder (a name without a suffix) for the results; created if missing"
    add("target", type=Path, metavar="OUT", help=text)
    add("--name", type=values.plain_name, help="name of the run with the generator")
    add("--weights", type=Path, help="a .pth or .safetensors file of a generator, instead of a run")
    add("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder of all runs (default: checkpoints)")
    add("--direction", choices=("AtoB", "BtoA"), help="direction of the translation (default: as trained)")
    add(
        "--epoch",
        type=values.plain_name,
        default="latest",
        help="weights of the run: latest, best, or the number of an epoch",
    )
    add("--no_ema", action="store_true", help="the trained weights, not their average, if the run has both")
    add("--eval", action="store_true", help="running statistics in batch norm, no dropout")
    add("--skip_bad_images", action="store_true", help="skip images that cannot be read")
    text = "values of files with more than 8 bits that become -1 and 1 (default: as trained)"
    add("--value_range", type=values.value_range, default="", metavar="LOW,HIGH", help=text)
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="auto = a GPU if there is one")
    text = "CPU threads; 0 = OMP_NUM_THREADS, or measured on the first images"
    add("--cpu_threads", type=values.non_negative_int, default=0, help=text)
    text = "pixels of a side of the tiles of large images, such as 512: the same result in bounded memory"
    add("--tile", type=values.positive_int, metavar="PIXELS", help=text)
    text = f"pixels around a tile that it may compute again, or else keeps on disk (default: {OVERLAP})"
    add("--tile_overlap", type=values.non_negative_int, metavar="PIXELS", help=text)
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    if (args.name is None) == (args.weights is None):
        parser.error("name a trained generator: either a run by --name, or a file by --weights")
    if args.tile_overlap is not None and not args.tile:
        parser.error(f"--tile_overlap {args.tile_overlap} needs --tile")
    return args


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each image with the file of its result: a file for a file, a folder of .png files for a folder.

    A target without a suffix is a folder.

    Raises:
        ValueError: there is no image, or a result would replace an image or lie among the images.
    """
    if source.is_dir():
        if target.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"{target} lies in {source}: results would mix with the images, choose another folder")
        paths = list_images(source)
        if target.is_file() or not paths:
            problem = f"{source} has no images" if not paths else f"{source} is a folder, and {target} a file"
            raise ValueError(f"{problem}: give two files or two folders")
        names = [path.relative_to(source).with_suffix(".png") for path in paths]
        if len(set(names)) < len(names):  # 1.jpg beside 1.png
            names = [path.relative_to(source).with_name(f"{path.name}.png") for path in paths]
        return [(path, target / name) for path, name in zip(paths, names, strict=True)]
    if not source.is_file():
        raise ValueError(f"{source}: there is no such image or folder")
    if target.is_dir() or not (target.suffix or target.is_file()):
        target /= f"{source.stem}.png"
    if not is_image(target.name):
        raise ValueError(f"{target} is not the name of an image file: these end in {' '.join(EXTENSIONS)}")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} would replace the image it is made from: choose another name")
    return [(source, target)]


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=("skip_bad_images",)))
