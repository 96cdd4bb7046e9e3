"""Compare a folder of made images with real ones: python -m scripts.metrics FAKES REALS --metrics kid,fid."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.image_file import ImageReader
from data.image_folder import list_images
from data.transforms import Transform
from options import values
from options.choices import DEVICES, FEATURES, METRICS
from options.parser import script_parser
from training.features import cache_key, cached, create_extractor
from training.labels import LabelMaps, Labels
from training.meter import OF_PAIRS, OF_SETS, Meter, figure, join
from util.command import run_command
from util.device import select_device
from util.rules import parse_rule

EXAMPLES = (
    "fakes reals --metrics kid,fid,precision_recall",
    "results/maps/test_latest/images mydata/testB --label fake_B --paired",
)
CHUNK = 64  # images in memory at a time


def main(argv: list[str] | None = None) -> int:
    """Print the figures of a folder of made images. Returns the exit status."""
    args = parse(argv)
    device = select_device(args.device)
    fakes, reals = named_images(args.fakes, args.label), named_images(args.reals)
    folders = {"fake_B": fakes}
    for label, folder, wanted in (("real_B", args.reals, args.paired), ("real_A", args.inputs, args.inputs)):
        if wanted:
            folders[label] = named_images(folder)
            if missing := [name for name in fakes if name not in folders[label]]:
                raise ValueError(
                    f"{folder} lacks {len(missing)} of the {len(fakes)} names in {args.fakes}, such as {missing[0]}"
                )
    sets = any(metric in OF_SETS for metric in args.metrics)
    extractor = create_extractor(args.metrics_features, args.metrics_weights, device) if sets else None
    labels = None
    if args.label_dir:
        maps = LabelMaps(dict(zip("AB", map(Path, args.label_dir), strict=True)))
        labels = Labels.learn(maps, ((path.stem, load(path)) for path in reals.values()))
    meter = Meter(args.metrics, extractor, [parse_rule(text) for text in args.content], labels)

    def real_features() -> Tensor:
        return torch.cat([meter.features(batch) for _, (batch,) in batches([list(reals.values())], "reals")])

    real = cached(cache_key(extractor, reals.values(), ["folder"]), real_features) if extractor else None
    paths = [[files[name] for name in fakes] for files in folders.values()]
    records = []
    names = {path: Path(name).name for name, path in fakes.items()}
    for files, images in batches(paths, "fakes"):
        shown = dict(zip(folders, images, strict=True))
        check_sizes(shown, files, args.metrics)
        if labels:
            height, width = shown["fake_B"].shape[2:]
            shown["label_A"] = labels.maps.read("A", [names[path] for path in files], (height, width))
        records.append(meter.measure(shown, [args.paired] * len(files)))
    figures = meter.figures(join(records), real)
    print(f"{args.fakes}: {len(fakes)} images, {args.reals}: {len(reals)}")
    features = f", {extractor.name}" if extractor else ""
    for name, value in figures.items():
        print(f"{figure(name).text(value)}{features if name in ('kid', 'fid', 'precision', 'recall') else ''}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.metrics", __doc__, *EXAMPLES)
    add = parser.add_argument
    add("fakes", type=Path, metavar="FAKES", help="folder of made images, with its subfolders")
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
    text = "EfficientNet-Lite0 or Lite2 for kid, fid and precision_recall (default: lite0)"
    add("--metrics_features", choices=FEATURES, default="lite0", help=text)
    text = "Inception weights for kid, fid and precision_recall instead: the file that torch-fidelity publishes"
    add("--metrics_weights", default="", help=text)
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
    if args.content and "content" not in args.metrics:
        parser.error("--content is for --metrics content")
    if args.label_dir and "content" not in args.metrics:
        parser.error("--label_dir is for --metrics content")
    return args


def named_images(folder: Path, label: str = "") -> dict[str, Path]:
    """The images of a folder by name, without suffix and, if there is one, without label.

    Raises:
        ValueError: there are none, or two of one name.
    """
    ending = f"_{label}" if label else ""
    images: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name.endswith(ending):
            name = name.removesuffix(ending)
            if name in images:
                raise ValueError(f"{images[name]} and {path} have one name: remove one, or choose a --label")
            images[name] = path
    if not images:
        raise ValueError(f"{folder} has no images{f' whose names end in {ending}' if label else ''}")
    return images


def batches(paths: Sequence[Sequence[Path]], title: str) -> Iterator[tuple[list[Path], list[Tensor]]]:
    """Read files in parallel, and batch consecutive ones of one size.

    Args:
        paths: lists of files, all equally long.
        title: of the progress bar.

    Yields:
        Files of the first list, and for each list the batch (B, 3, H, W) in [-1, 1].
    """
    rows = list(zip(*paths, strict=True))
    with ThreadPoolExecutor() as pool, tqdm(total=len(rows), desc=title, unit="image", delay=1, disable=None) as bar:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            loaded = zip(chunk, pool.map(lambda row: [load(path) for path in row], chunk), strict=True)
            for _, same in itertools.groupby(loaded, key=lambda row: [image.shape for image in row[1]]):
                files, images = zip(*same, strict=True)
                yield [row[0] for row in files], [torch.stack(column) for column in zip(*images, strict=True)]
                bar.update(len(files))


def load(path: Path) -> Tensor:
    """The image in a file as color, (3, H, W) in [-1, 1]. DataError if it cannot be read or has other channels."""
    return Transform(preprocess="none", flip=False, multiple=1)(ImageReader()(path))


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
