"""Translate images with a trained model: python test.py --name maps. Writes results/maps/test_latest/index.html."""

import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data import EpochLoader, create_dataset
from data.check import listing
from data.image_file import image_size
from data.image_folder import common_folder, relative_name
from data.reductions import of_results, reductions
from data.scans import ScanWriter, is_slice, scan_suffix
from display.attention_maps import AttentionMap, AttentionRecorder
from display.create import check_packages, create_wandb
from display.pages.results import ResultsPage
from inference.tiles import Tiled
from inference.trained import Trained, find_trained
from models.base_model import BaseModel
from models.networks.attention import attention_blocks
from models.weights import find_weights, load_weights
from options import values
from options.base_options import Options
from training.evaluation import Measurement, create_measurement
from training.meter import in_words
from training.metrics import mean_absolute_error, psnr, ssim
from util import distributed
from util.command import SKIPPED, configure_logging, run_command, writing
from util.device import autocast, choose_precision, keep_freed_memory, select_device, tuning
from util.images import (
    PixelFormat,
    check_finite,
    in_color,
    is_viewable,
    label_formats,
    save_file,
    save_image,
    to_images,
)
from util.threads import ThreadChooser, choose_threads

log = logging.getLogger("test")

WAITING = 1000  # samples in memory, at most

LogResult = Callable[[str, Mapping[str, Tensor]], None]  # takes the name of an image and its results
# label of a translation -> what it is made from
SOURCES = {"fake": "A_paths", "fake_B": "A_paths", "rec_A": "A_paths", "fake_A": "B_paths", "rec_B": "B_paths"}
TRUTH = {"fake_B": "real_B", "fake_B_rgb": "real_B_rgb"}  # label of a translation -> label of its truth


@dataclasses.dataclass(frozen=True)
class Translation:
    """The results for one test image."""

    name: str  # of its file, without suffix, relative to the folder of all files
    images: dict[str, Tensor]  # label -> (C, H, W) in [-1, 1]
    attention: list[AttentionMap]
    sources: dict[str, Path]  # label of a translation -> the file that it is made from
    paired: bool  # real_B has the same name as real_A, so it should be the true translation


def main(argv: list[str] | None = None) -> int:
    """Parse, load, translate every image, write the page. Returns the exit status. Only rank 0 works."""
    configure_logging()
    if not distributed.is_main():
        return 0
    trained = find_trained(argv)
    opt = trained.opt
    check_packages(opt)
    keep_freed_memory()
    if trained.inferred:
        log.info("%s", trained.inferred)
    torch.manual_seed(opt.seed)  # of dropout, which upstream keeps on
    loader = create_dataset(opt)
    made = result_formats(loader.dataset.formats, trained)
    for line in reductions(loader.dataset, Path(opt.dataroot), train=False):
        log.info("%s", line)
    log.info("%s", of_results({letter: made[side] for side, letter in zip("AB", loader.dataset.domains, strict=True)}))
    device = select_device(opt.device, opt.gpu_ids)
    precision = choose_precision(opt.precision, device)
    threads = choose_threads(opt.cpu_threads, device=device)
    sizes = loader.dataset.distinct_sizes
    tuning(device, precision=precision, training=False, sizes=len(sizes)).apply()
    model, files = trained.build(device)
    model.check_sizes(sizes)
    if opt.verbose:
        log.info("%s", model.summary(verbose=True))
    for name, path in files.items():
        log.info("%s is %s", name, path)
    if opt.model == "sagan" and opt.samples_only:
        folder = Path(opt.results_dir) / opt.name / f"samples_{trained.label}"
        with writing("--results_dir", folder):
            return save_samples(model, loader, folder, threads, made["A"], precision=precision)
    if opt.batch_size > 1 and not opt.eval and any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        log.warning(
            "batch norm computes statistics over the images of a batch, so results depend on --batch_size %d: "
            "--eval takes those of training, and --batch_size 1 those of each image",
            opt.batch_size,
        )
    if opt.tile:
        run_in_tiles(model, tile=opt.tile, overlap=opt.tile_overlap)
    elif not trained.file:
        add_discriminators(trained, model, sizes)
    measurement = None
    if opt.metrics:
        measurement = create_measurement(opt, loader.dataset, device)

    folder = Path(opt.results_dir) / opt.name / f"{opt.phase}_{trained.label}"
    with writing("--results_dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
    options, flag = (folder, "--results_dir") if trained.file else (trained.run_dir, "--checkpoints_dir")
    with writing(flag, options):
        opt.save(options)
    with writing("--results_dir", folder):
        return save_results(opt, model, loader, files, folder, threads, precision, measurement, made)


def save_results(
    opt: Options, model: BaseModel, loader: EpochLoader, files: dict[str, Path], folder: Path, threads: ThreadChooser,
    precision: str, measurement: Measurement | None, made: Mapping[str, PixelFormat],
) -> int:  # fmt: skip
    """Translate every image into `folder`, results in the formats `made`. Returns the exit status."""
    a, b = ("B", "A") if opt.direction == "BtoA" else ("A", "B")
    notes = {"run": opt.name, "model": opt.model, "weights": ", ".join(path.name for path in files.values())}
    title = f"{opt.name}: {model.results_title.format(A=a, B=b)}"
    formats = label_formats(loader.dataset.formats, made)
    earlier = {path: path.stat().st_mtime_ns for path in (folder / "images").rglob("*.*")}
    page = ResultsPage(folder, title, names=(a, b), notes=notes, size=opt.display_winsize, formats=formats)
    total = len(loader.dataset)
    count = int(min(opt.num_test, total))
    for caption, figure in model.overview(loader.dataset).items():
        page.add_overview(caption, figure)
    translations = translate(model, loader, threads, precision=precision)
    if measurement:
        translations = measured(translations, measurement)
    results = tqdm(itertools.islice(translations, count), total=count, unit="image", disable=None)
    with create_sink(opt, folder) as log_result:
        add_results(page, results, aspect_ratio=opt.aspect_ratio, log_result=log_result)
    if measurement:
        figures = measurement.figures([measurement.part()])
        measured_on = measurement.describe()
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        (folder / "metrics.json").write_text(json.dumps({"figures": known, "measured_on": measured_on}) + "\n")
        note = f"{in_words(figures)}; {measured_on}"
        page.notes["metrics"] = note
        log.info("%s", note)
    page.save()
    limited = f", limited by --num_test {count}" if count < total else ""
    log.info("%d of %d images made%s. Open %s", count, total, limited, folder / "index.html")
    if left := sum(path.stat().st_mtime_ns == time for path, time in earlier.items()):
        log.warning("%s still has %d files of an earlier test, which the page does not show", folder / "images", left)
    if skipped := loader.dataset.skipped:
        log.warning("%d images were skipped:\n%s", len(skipped), listing(skipped))
    return SKIPPED if skipped else 0


def result_formats(found: Mapping[str, PixelFormat], trained: Trained) -> dict[str, PixelFormat]:
    """The formats of results of the domains "A" and "B": those saved with the run or, without any, of the test files.

    Args:
        found: the formats of the test files of "A" and "B".
    """
    opt, source = trained.opt, found.get("A", PixelFormat())
    A, B = (values.bounds(text) for text in (opt.value_range_A, opt.value_range_B))
    target = A if opt.direction == "BtoA" else B
    return {
        "A": trained.formats.get("A", source),
        "B": source.of_result(trained.formats.get("B", found.get("B")), target),
    }


def save_samples(
    model: BaseModel, loader: EpochLoader, folder: Path, threads: ThreadChooser, fmt: PixelFormat, *, precision: str
) -> int:
    """Write the sample of each seed into `folder`, in place of those there: as PNG, or as TIFF if `fmt` needs it.

    Returns:
        The exit status.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "tif"):
        for path in folder.glob(f"seed*.{suffix}"):
            path.unlink()
    saved: collections.deque[Future[None]] = collections.deque()
    with ThreadPoolExecutor() as pool, tqdm(total=len(loader.dataset), unit="image", disable=None) as bar:
        for batch in loader:
            with threads.timed(batch), torch.no_grad(), autocast(model.device, precision):
                samples = model(batch)["sample"]
                check_finite(samples, *batch["A_paths"])
            viewable = is_viewable(samples, fmt)
            paths = [folder / f"{name}.{'png' if viewable else 'tif'}" for name in batch["A_paths"]]
            if viewable and not fmt.alpha:  # converted as a batch, which is faster
                for image, path in zip(to_images(samples), paths, strict=True):
                    saved.append(pool.submit(save_file, image, path))
            else:
                for sample, path in zip(samples, paths, strict=True):
                    saved.append(pool.submit(save_image, sample, path, fmt))
            while len(saved) > WAITING:  # the disk may be slower than the generator
                saved.popleft().result()
            bar.update(len(paths))
        for future in saved:
            future.result()
    log.info("%d samples are in %s", len(loader.dataset), folder)
    return 0


@contextlib.contextmanager
def create_sink(opt: Options, folder: Path) -> Iterator[LogResult]:
    """Where results are logged beside the page: with --use_wandb, Weights & Biases, which keeps files in `folder`."""
    if not opt.use_wandb:
        yield lambda name, images: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(create_wandb(opt, folder)) as sink:
        yield sink.result


def add_results(
    page: ResultsPage, results: Iterable[Translation], *, aspect_ratio: float, log_result: LogResult
) -> None:
    """Add every result to the page and the log, under the name of its file."""
    names: set[str] = set()
    scans = ScanWriter()
    for result in results:
        free = itertools.chain([result.name], (f"{result.name}_{number}" for number in itertools.count(2)))
        name = next(name for name in free if name not in names)  # 1.jpg beside 1.png, one A that meets several Bs
        names.add(name)
        images = {
            key: stretch(image, aspect_ratio, smooth=not page.formats.get(key, PixelFormat()).classes)
            for key, image in result.images.items()
        }
        shown = dataclasses.replace(result, images=in_color(result.images, page.formats))
        page.add(name, images, result.attention, scores(shown))
        log_result(name, in_color(images, page.formats))
        add_scans(scans, page, name, images, result.sources)
    scans.close()


def add_scans(
    scans: ScanWriter, page: ResultsPage, name: str, images: Mapping[str, Tensor], sources: Mapping[str, Path]
) -> None:
    """Write the translations of scans as scans beside the images of the page, if they have the sizes of their files."""
    for label, source in sources.items():
        image = images[label]
        if not (kind := scan_suffix(source)):
            continue
        if image_size(source) != (image.shape[2], image.shape[1]):
            scans.resized += 1
            continue
        array = page.formats.get(label, PixelFormat()).to_array(image)
        scans.add(source, array, page.folder / "images" / scan_name(name, source, label, kind))


def scan_name(name: str, source: Path, label: str, kind: str) -> str:
    """The name of a scan among the results: that of its image or, without the number of the slice, of its volume."""
    if not is_slice(source):
        return f"{name}_{label}{kind}"
    folder = Path(name).parent
    stem = str(folder if folder.name else source.parent.name).removesuffix(kind)
    return f"{stem}_{label}{kind}"


def scores(result: Translation) -> dict[str, float]:
    """The similarity of a translation to its truth, see ResultsPage.add; empty if there is none."""
    for label, true_label in TRUTH.items():
        if not result.paired or label not in result.images:
            continue
        fake, truth = result.images[label][None], result.images[true_label][None]
        if fake.shape == truth.shape:  # or they have one name, but are no pair
            figures = {"L1": mean_absolute_error(fake, truth), "PSNR": psnr(fake, truth), "SSIM": ssim(fake, truth)}
            return {name: figure.item() for name, figure in figures.items()}
    return {}


def measured(translations: Iterable[Translation], measurement: Measurement) -> Iterator[Translation]:
    """Pass on the translations, in the order of the dataset, and measure them."""
    for index, translation in enumerate(translations):
        images = in_color(translation.images, measurement.formats)
        measurement.add({label: image[None] for label, image in images.items()}, [index])
        yield translation


def add_discriminators(trained: Trained, model: BaseModel, sizes: set[tuple[int, int]]) -> None:
    """Give the model its discriminators, whose attention the page shows, if they have any and their files are there.

    They do not change the results, so when they cannot be used, a log message says why.
    """
    generators, discriminators = set(dict(model.named_children())), {}
    try:
        model.add_discriminators(trained.opt)
        discriminators = {name: net for name, net in model.named_children() if name not in generators}
        if any(attention_blocks(net) for net in discriminators.values()):
            for name, net in discriminators.items():
                sources = model.sources(name, reverse=trained.reverse)
                load_weights(net, find_weights(trained.run_dir, trained.label, sources))
                net.requires_grad_(False).eval()
            model.check_sizes(sizes)
            return
    except ValueError as error:
        log.warning("the page does not show the attention of the discriminators: %s", error)
    for name in discriminators:
        delattr(model, name)


def run_in_tiles(model: BaseModel, *, tile: int, overlap: int) -> None:
    """Run the generators of the model in tiles. Then no attention is shown: its maps need the whole image.

    Raises:
        ValueError: a generator does not run in tiles.
    """
    for name, net in list(model.named_children()):
        setattr(model, name, Tiled(net, tile=tile, overlap=overlap))


def translate(
    model: BaseModel, loader: EpochLoader, threads: ThreadChooser, *, precision: str = "fp32"
) -> Iterator[Translation]:
    """Run the model over the data, one result an image."""
    dataset = loader.dataset
    root_A, root_B = (common_folder(paths) for paths in (dataset.A_paths, dataset.B_paths))
    views = {name: view for name, view in model.attention_views().items() if not isinstance(view.net, Tiled)}
    for batch in loader:
        recorder = AttentionRecorder(views)
        with threads.timed(batch), torch.no_grad(), autocast(model.device, precision), recorder:
            images = model(batch)
            for image in images.values():
                check_finite(image, *batch["A_paths"])
            recorder.run_missing(images)
        attention = recorder.maps()
        for i, path in enumerate(batch["A_paths"]):
            name = relative_name(path, root_A)
            yield Translation(
                name=name,
                images={label: image[i] for label, image in images.items()},
                attention=[block[i] for block in attention],
                sources={
                    label: Path(batch[key][i]) for label, key in SOURCES.items() if label in images and key in batch
                },
                paired="B_paths" in batch and relative_name(batch["B_paths"][i], root_B) == name,
            )


def stretch(image: Tensor, aspect_ratio: float, *, smooth: bool = True) -> Tensor:
    """(C, H, W) with its width (above 1) or its height (below 1) stretched by the ratio, as upstream shows results."""
    if aspect_ratio == 1:
        return image
    scale = (1.0, aspect_ratio) if aspect_ratio > 1 else (1 / aspect_ratio, 1.0)
    if not smooth:
        return F.interpolate(image[None], scale_factor=scale, mode="nearest-exact")[0]
    return F.interpolate(image[None], scale_factor=scale, mode="bicubic", align_corners=False)[0].clamp(-1, 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
