"""Compare a folder of generated images with real ones: python -m scripts.metrics FAKES REALS --metrics kid,fid."""

import argparse
import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.classes import class_of, class_of_made, number_classes
from data.image_file import ImageReader
from data.image_folder import list_images
from data.transforms import Transform
from options import values
from options.choices import DEVICES, FEATURES, METRICS
from options.parser import script_parser
from training.features import cache_key, cached, create_extractor
from training.labels import LabelMaps, Labels
from training.meter import OF_PAIRS, OF_SETS, Meter, figure, join
from training.metrics import kernel_distance, nearest
from util.command import run_command
from util.device import select_device
from util.rules import parse_rule

EXAMPLES = (
    "fakes reals --metrics kid,fid,precision_recall",
    "results/maps/test_latest/images mydata/testB --label fake_B --paired",
)
CHUNK = 64  # images in memory at a time
EXACT = {".png": 0, ".dcm": 1, ".tif": 2}  # of the files of one result, the one with all of its values
ENOUGH = 50  # images of each kind, for the KID of a class: the KID of fewer says more about the sample than the class
BAR = 20  # characters of the bar of the highest KID


def main(argv: list[str] | None = None) -> int:
    """Print the figures of a folder of generated images. Returns the exit status."""
    args = parse(argv)
    device = select_device(args.device)
    fakes, reals = named_images(args.fakes, args.label), named_images(args.reals)
    kinds = {match[1] for name in fakes if (match := re.search("_((real|fake|rec|idt)(_[AB])?(_rgb)?)$", name))}
    if not args.label and len(kinds) > 1:
        raise ValueError(f"{args.fakes} has images of several kinds, {', '.join(sorted(kinds))}: choose one by --label")
    folders = {"fake_B": fakes}
    for label, folder, wanted in (("real_B", args.reals, args.paired), ("real_A", args.inputs, args.inputs)):
        if wanted:
            folders[label] = named_images(folder)
            if missing := [name for name in fakes if name not in folders[label]]:
                raise ValueError(
                    f"{folder} lacks {len(missing)} of the {len(fakes)} names in {args.fakes}, such as {missing[0]}"
                )
    ranges = {label: values.bounds(args.value_range) for label in folders}
    if args.value_range_A:
        ranges["real_A"] = values.bounds(args.value_range_A)
    inputs = [*folders.get("real_A", {}).values()]
    check_ranges(args, [*fakes.values(), *reals.values(), *inputs], inputs)
    classes = classes_of(args, fakes, reals) if args.class_of else None
    sets = any(metric in OF_SETS for metric in args.metrics)
    extractor = create_extractor(args.metrics_features, args.metrics_weights, device) if sets else None
    labels = None
    if args.label_dir:
        maps = LabelMaps(dict(zip("AB", map(Path, args.label_dir), strict=True)))
        labels = Labels.learn(maps, ((path.stem, load(path, ranges["fake_B"])) for path in reals.values()))
    meter = Meter(args.metrics, extractor, [parse_rule(text) for text in args.content], labels)

    def real_features() -> Tensor:
        found = batches([list(reals.values())], [ranges["fake_B"]], "reals")
        return torch.cat([meter.features(batch) for _, (batch,) in found])

    looks = ["folder", *([args.value_range] if args.value_range else [])]
    real = cached(cache_key(extractor, reals.values(), looks), real_features) if extractor else None
    paths = [[files[name] for name in fakes] for files in folders.values()]
    records = []
    names = {path: Path(name).name for name, path in fakes.items()}
    for files, images in batches(paths, list(ranges.values()), "fakes"):
        shown = dict(zip(folders, images, strict=True))
        check_sizes(shown, files, args.metrics)
        if labels:
            height, width = shown["fake_B"].shape[2:]
            shown["label_A"] = labels.maps.read("A", [names[path] for path in files], (height, width))
        records.append(meter.measure(shown, [args.paired] * len(files)))
    measured = join(records)
    figures = meter.figures(measured, real)
    print(f"{args.fakes}: {len(fakes)} images, {args.reals}: {len(reals)}")
    features = f", {extractor.name}" if extractor else ""
    for name, value in figures.items():
        print(f"{figure(name).text(value)}{features if name in ('kid', 'fid', 'precision', 'recall') else ''}")
    if classes and real is not None:
        class_names, of_fakes, of_reals = classes
        print("\n".join(class_table(class_names, measured["features"], real, of_fakes, of_reals)))
    return 0


def classes_of(
    args: argparse.Namespace, fakes: Mapping[str, Path], reals: Mapping[str, Path]
) -> tuple[list[str], Tensor, Tensor]:
    """The names of all classes, and the numbers of those of the made and of the real images, (N,) and (M,).

    Args:
        fakes, reals: name -> file, as `named_images` finds them.

    Raises:
        DataError: the class of an image is not known.
    """
    names, of_reals = number_classes([class_of(path, args.reals, args.class_of) for path in reals.values()], [])
    unlabeled = [path.with_stem(Path(name).name) for name, path in fakes.items()]
    made = [class_of_made(path, args.fakes, args.class_of, names) for path in unlabeled]
    return names, torch.tensor(number_classes(made, names)[1]), torch.tensor(of_reals)


def class_table(
    names: Sequence[str], fakes: Tensor, reals: Tensor, of_fakes: Tensor, of_reals: Tensor
) -> Iterator[str]:
    """Lines of text: the figures of each class that generated images have, and the class accuracy.

    Args:
        names: of all classes.
        fakes, reals: features (N, D) and (M, D).
        of_fakes, of_reals: the numbers of their classes, (N,) and (M,).
    """
    right, right_real = of_fakes == of_reals[nearest(fakes, reals)], of_reals == of_reals[nearest(reals)]
    rows = []
    for number in of_fakes.unique().tolist():
        ours, theirs = of_fakes == number, of_reals == number
        counts = int(ours.sum()), int(theirs.sum())
        kid = 1000 * kernel_distance(fakes[ours], reals[theirs]) if min(counts) >= ENOUGH else math.nan
        shares = right[ours].double().mean().item(), right_real[theirs].double().mean().item()
        rows.append((names[number], *counts, *shares, kid))
    highest = max((kid for *_, kid in rows if kid > 0), default=1.0)
    width = max(len("class"), *(len(name) for name, *_ in rows))
    yield f"{'class':{width}}   made   real  right  of real  KID x1000"
    for name, made, real, share, share_real, kid in rows:
        bar = "-" if math.isnan(kid) else f"{kid:9.2f} {'#' * round(BAR * max(kid, 0) / highest)}"
        yield f"{name:{width}} {made:6} {real:6}  {share:.3f}    {share_real:.3f}  {bar}".rstrip()
    if few := [name for name, *_, kid in rows if math.isnan(kid)]:
        yield f"no KID of classes with fewer than {ENOUGH} made or real images: {', '.join(few)}"
    mean, mean_real = (sum(row[column] for row in rows) / len(rows) for column in (3, 4))
    yield f"class accuracy {mean:.3f}; of real images, left out: {mean_real:.3f}; by chance: {1 / len(names):.3f}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.metrics", __doc__, *EXAMPLES)
    add = parser.add_argument
    add("fakes", type=Path, metavar="FAKES", help="folder of generated images, with its subfolders")
    add("reals", type=Path, metavar="REALS", help="folder of real images")
    text = f"some of {','.join(METRICS)} (default: kid; with --paired l1,psnr,ssim too; with --content, --inputs or "
    add("--metrics", type=values.metrics, default=[], help=f"{text}--label_dir content too)")
    add("--paired", action="store_true", help="images of the same name in REALS are the truth")
    text = "folder of the images that were translated, by the same names, to find out whether content was kept"
    add("--inputs", type=Path, help=text)
    text = "only files in FAKES that end in _LABEL, which names are compared without: fake_B for those of test.py"
    add("--label", default="", help=text)
    text = "classes of pixels for the metric content, such as 'sea: A(B - G > 15, B > 150); B(B > R - 20)'"
    add("--content", nargs="+", type=values.rule, default=[], metavar="RULE", help=text)
    text = "label maps for the metric content, by the names of the images: those of the inputs of FAKES, and those of "
    text += "REALS, from which a small segmenter learns"
    add("--label_dir", type=values.label_dirs, metavar="A=FOLDER,B=FOLDER", help=text)
    text = "class of each image, as in training: folder or a regular expression; samples of test.py have it in their "
    text += "names. KID of each class with enough images, and how often the class of a generated image is right"
    add("--class_of", type=values.class_rule, default="", metavar="folder|REGEX", help=text)
    text = "EfficientNet-Lite0 or Lite2 for kid, fid and precision_recall (default: lite0)"
    add("--metrics_features", choices=FEATURES, default="lite0", help=text)
    text = "Inception weights for kid, fid and precision_recall instead: the file that torch-fidelity publishes"
    add("--metrics_weights", default="", help=text)
    text = "values of files with more than 8 bits that become -1 and 1; default: by dtype"
    add("--value_range", type=values.value_range, default="", metavar="LOW,HIGH", help=text)
    text = "the same for --inputs alone; default: --value_range"
    add("--value_range_A", type=values.value_range, default="", metavar="LOW,HIGH", help=text)
    add("--device", default="auto", choices=DEVICES, help="auto = a GPU if there is one")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    if not args.metrics:
        args.metrics = [
            "kid",
            *(OF_PAIRS if args.paired else ()),
            *(["content"] if args.content or args.inputs or args.label_dir else ()),
        ]
    pairs = [metric for metric in args.metrics if metric in OF_PAIRS]
    if pairs and not args.paired:
        parser.error(f"--metrics {pairs[0]} compares images of the same name: add --paired")
    if "cycle" in args.metrics:
        parser.error("--metrics cycle needs the model: train.py and test.py compute it")
    if args.value_range_A and not args.inputs:
        parser.error(f"--value_range_A {args.value_range_A} is for --inputs")
    if args.content and "content" not in args.metrics:
        parser.error("--content is for --metrics content")
    if args.class_of and "kid" not in args.metrics:
        parser.error("--class_of is for --metrics kid")
    if args.label_dir and "content" not in args.metrics:
        parser.error("--label_dir is for --metrics content")
    return args


def named_images(folder: Path, label: str = "") -> dict[str, Path]:
    """The images of a folder by name, without suffix and, if there is one, without label.

    With a label they are results of test.py, of which some have two files: one that pages show, and one of all values.

    Raises:
        ValueError: there are none, or two of one name.
    """
    ending = f"_{label}" if label else ""
    images: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name.endswith(ending):
            name = name.removesuffix(ending)
            if other := images.get(name):
                if not label or EXACT.get(other.suffix) == EXACT.get(path.suffix):
                    raise ValueError(f"{other} and {path} have one name: remove one, or choose a --label")
                path = max(other, path, key=lambda file: EXACT.get(file.suffix, 0))
            images[name] = path
    if not images:
        raise ValueError(f"{folder} has no images{f' whose names end in {ending}' if label else ''}")
    return images


def check_ranges(args: argparse.Namespace, files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise ValueError if a flag about the values of files meets 8-bit images only."""
    for flag, paths in (("value_range", files), ("value_range_A", inputs)):
        text = getattr(args, flag)
        reader = ImageReader(value_range=values.bounds(text))
        if text and not any(reader.format(path).has_range for path in paths):
            raise ValueError(f"--{flag} {text}: these images have 8 bits, which are always 0 to 255")


def batches(
    paths: Sequence[Sequence[Path]], ranges: Sequence[tuple[float, float] | None], title: str
) -> Iterator[tuple[list[Path], list[Tensor]]]:
    """Read files in parallel, and batch consecutive ones of one size.

    Args:
        paths: lists of files, all equally long.
        ranges: for each list, the values of its deep files that become -1 and 1; None for those of their dtype.
        title: of the progress bar.

    Yields:
        Files of the first list, and for each list the batch (B, 3, H, W) in [-1, 1].
    """
    rows = list(zip(*paths, strict=True))
    with ThreadPoolExecutor() as pool, tqdm(total=len(rows), desc=title, unit="image", delay=1, disable=None) as bar:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            loaded = zip(chunk, pool.map(lambda row: list(map(load, row, ranges)), chunk), strict=True)
            for _, same in itertools.groupby(loaded, key=lambda row: [image.shape for image in row[1]]):
                files, images = zip(*same, strict=True)
                yield [row[0] for row in files], [torch.stack(column) for column in zip(*images, strict=True)]
                bar.update(len(files))


def load(path: Path, value_range: tuple[float, float] | None) -> Tensor:
    """The image in a file as color, (3, H, W) in [-1, 1]. DataError if it cannot be read or has other channels."""
    return Transform(preprocess="none", flip=False, multiple=1)(ImageReader(value_range=value_range)(path))


def check_sizes(images: dict[str, Tensor], paths: Sequence[Path], metrics: Sequence[str]) -> None:
    """Raise ValueError if images that are to be compared pixel by pixel have other sizes than the fakes."""
    fake = images["fake_B"]
    for label, other in images.items():
        if other.shape != fake.shape and any(metric not in OF_SETS for metric in metrics):
            sizes = [f"{image.shape[3]}x{image.shape[2]}" for image in (fake, other)]
            what = {"real_B": "its truth", "real_A": "its input"}[label]
            raise ValueError(f"{paths[0]} is {sizes[0]} pixels, but {what} is {sizes[1]}: make both of one size")


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
