"""Translate an image or a folder of images: python -m scripts.translate in.jpg out.png --name NAME."""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from data.check import listing, skip_bad
from data.image_folder import WRITABLE, list_images
from data.nifti import NIFTI
from data.reductions import files_left_out
from data.scans import LAST, ScanWriter, file_of, is_scan_of, is_slice, scan_suffix, slices_of
from inference.tiles import OVERLAP
from inference.translator import Translator, as_tensor
from inference.windows import open_windows, translate_windows
from options import values
from options.choices import DEVICES
from options.parser import script_parser
from scripts.generators import add_generator_flags, check_generator, load_translator
from util.command import SKIPPED, configure_logging, run_command
from util.device import select_device
from util.files import check_kept
from util.images import PixelFormat, is_viewable, save_image
from util.threads import choose_threads

EXAMPLES = (
    "in.jpg out.png --name mine", "photos charts --weights weights/chart_AtoB.safetensors",
    "large.tif out.tif --name mine --direction BtoA --tile 512",
)  # fmt: skip

log = logging.getLogger("scripts.translate")


def main(argv: list[str] | None = None) -> int:
    """Load the generator and translate every image. Returns the exit status."""
    configure_logging()
    args = parse(argv)
    device = select_device(args.device)
    threads = choose_threads(args.cpu_threads, device=device)
    overlap = {} if args.tile_overlap is None else {"tile_overlap": args.tile_overlap}
    translator = load_translator(args, device=device, tile=args.tile, **overlap)
    pairs = plan(args.source, args.target, translator.slice_axis if args.slice_axis is None else args.slice_axis)
    set_ranges(translator, args)
    reader = translator.reader
    skipped: list[str] = []
    if args.skip_bad_images:
        good, skipped = skip_bad([path for path, _ in pairs], reader)
        usable = set(good)
        pairs = [pair for pair in pairs if pair[0] in usable]
    check_ranges(translator, args, [path for path, _ in pairs])
    scans = ScanWriter()
    for path, target in tqdm(pairs, unit="image", disable=None if len(pairs) > 1 else True):
        if opened := open_windows(translator, path):
            with closing(opened):
                translate_windows(translator, opened, target, is_chosen=target == args.target)
            continue
        image = as_tensor(reader(path), channels=translator.input_nc)
        fmt = translator.result_format(reader.format(path))
        try:
            with threads.timed({"A": image}):
                made = translator(image)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if is_scan_of(path, target):
            scans.add(path, fmt.to_array(made), target)
            continue
        if target != args.target and not is_viewable(made, fmt) and not fmt.classes:
            target = target.with_suffix(".tif")  # of the depth and channels that PNG cannot hold
            check_kept(path, target)
        save_image(made, target, fmt)
    scans.close()
    print(f"{len(pairs)} translated by {args.weights or args.name}: {args.target}")
    if skipped:
        print(f"{len(skipped)} skipped:\n{listing(skipped)}")
    return SKIPPED if skipped else 0


def set_ranges(translator: Translator, args: argparse.Namespace) -> None:
    """Let the flags replace the ranges of values that the run was trained with."""
    own = {"A": values.bounds(args.value_range_A), "B": values.bounds(args.value_range_B)}
    source, target = (own[domain] for domain in translator.domains)
    both = values.bounds(args.value_range)
    translator.value_range = source or both or translator.value_range
    translator.output_range = target or both or translator.output_range
    fmt = translator.output_format
    if fmt is None and target:  # of weights without a run
        translator.output_format = PixelFormat("float32", target)
    elif fmt is not None and fmt.has_range:
        translator.output_format = fmt.with_range(translator.output_range)


def check_ranges(translator: Translator, args: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Raise ValueError if a flag about values meets 8-bit images or label maps only."""

    def has_range(path: Path) -> bool:
        if opened := open_windows(translator, path):
            with closing(opened):
                return opened.format.has_range
        return translator.reader.format(path).has_range

    def reads() -> bool:
        return any(map(has_range, paths))

    source, target = (f"value_range_{domain}" for domain in translator.domains)
    writes = translator.output_format is not None and translator.output_format.has_range
    used = {source: reads, target: lambda: writes, "value_range": lambda: writes or reads()}
    for flag, is_used in used.items():
        if (text := getattr(args, flag)) and not is_used():
            raise ValueError(f"--{flag} {text}: these images have 8 bits or classes, which have no other range")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.translate", __doc__, *EXAMPLES)
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="an image, or a folder of images with its subfolders")
    text = "file for the result, or folder (a name without a suffix) for the results; created if missing"
    add("target", type=Path, metavar="OUT", help=text)
    add_generator_flags(parser)
    add("--skip_bad_images", action="store_true", help=f"skip images that cannot be read; exit status {SKIPPED}")
    text = "values of files with more than 8 bits that become -1 and 1 (default: as trained)"
    add("--value_range", type=values.value_range, default="", metavar="LOW,HIGH", help=text)
    text = "the same for the images of domain {} alone; without a run, results are float32 in this range"
    add("--value_range_A", type=values.value_range, default="", metavar="LOW,HIGH", help=text.format("A"))
    add("--value_range_B", type=values.value_range, default="", metavar="LOW,HIGH", help=text.format("B"))
    text = "axis of NIfTI volumes along which slices are images (default: as trained)"
    add("--slice_axis", type=int, choices=(0, 1, 2), help=text)
    add("--device", default="auto", choices=DEVICES, help="auto = a GPU if there is one")
    text = "CPU threads; 0 = OMP_NUM_THREADS, or measured on the first images"
    add("--cpu_threads", type=values.non_negative_int, default=0, help=text)
    text = "pixels of a side of the tiles of large images, such as 512: the same result in bounded memory"
    add("--tile", type=values.positive_int, metavar="PIXELS", help=text)
    text = f"pixels around a tile that it may compute again, or else keeps on disk (default: {OVERLAP})"
    add("--tile_overlap", type=values.non_negative_int, metavar="PIXELS", help=text)
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    check_generator(parser, args)
    if args.tile_overlap is not None and not args.tile:
        parser.error(f"--tile_overlap {args.tile_overlap} needs --tile")
    return args


def plan(source: Path, target: Path, slice_axis: int = LAST) -> list[tuple[Path, Path]]:
    """Each image with the file of its result: a file for a file, a folder of .png files for a folder.

    A target without a suffix is a folder.

    Raises:
        ValueError: there is no image, or a result would replace an image or lie among the images.
    """
    if source.is_dir():
        if target.resolve().is_relative_to(source.resolve()):
            raise ValueError(f"{target} lies in {source}: results would mix with the images, choose another folder")
        paths = list_images(source, slice_axis=slice_axis)
        if target.is_file() or not paths:
            problem = f"{source} has no images" if not paths else f"{source} is a folder, and {target} a file"
            raise ValueError(f"{problem}: give two files or two folders")
        for line in files_left_out(source):
            log.warning("%s: %s", source, line)
        files = {file_of(path): path for path in paths}
        names = {file: file.relative_to(source) for file in files}
        results = {file: names[file] if scan_suffix(files[file]) else names[file].with_suffix(".png") for file in files}
        stems = {str(name.with_suffix("")).casefold() for name in results.values()}  # disks may take a.png for A.png
        if len(stems) < len(files):  # 1.jpg beside 1.png or 1.tif
            results = {file: name.with_name(f"{name.name}.png") for file, name in names.items()}
            results |= {file: names[file] for file, path in files.items() if scan_suffix(path)}
        return [(path, target / results[file_of(path)]) for path in paths]
    if not source.is_file():
        raise ValueError(f"{source}: there is no such image or folder")
    paths = slices_of(source, slice_axis)
    kind = scan_suffix(paths[0])
    if target.is_dir() or not (target.suffix or target.is_file()):
        target /= source.name if kind else f"{source.stem}.png"
    if is_slice(paths[0]) and not is_scan_of(paths[0], target):
        suffixes = (kind,) if kind == ".dcm" else NIFTI
        raise ValueError(f"{target}: the result of a volume is a volume, whose name ends in {' or '.join(suffixes)}")
    if not is_scan_of(paths[0], target) and not target.name.lower().endswith(WRITABLE):
        raise ValueError(f"{target} is not the name of an image file: these end in {' '.join(WRITABLE)}")
    check_kept(source, target)
    return [(path, target) for path in paths]


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=("skip_bad_images",)))
