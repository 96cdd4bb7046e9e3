"""Translate images with a trained model: python test.py --name maps. Writes results/maps/test_latest/index.html."""

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data import EpochLoader, create_dataset
from models.base_model import BaseModel
from models.translator import find_trained
from options.base_options import Options
from util import distributed
from util.attention import AttentionMap, watch
from util.command import run_command
from util.device import pick_device
from util.html import ResultsPage
from util.metrics import mean_absolute_error, ssim

Log = Callable[[str, Mapping[str, Tensor]], None]  # takes the name of a picture and what was made of it
TRUTH = {"fake_B": "real_B", "fake_B_rgb": "real_B_rgb"}  # label of a translation -> of what it should be


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a model made of one test image."""

    name: str  # of its file, without suffix, relative to the folder of all
    images: dict[str, Tensor]  # label -> (C, H, W) in [-1, 1]
    attention: list[AttentionMap]
    paired: bool  # real_B has the same name as real_A, so it should be the true translation


def main(argv: list[str] | None = None) -> int:
    """Parse, load, translate every image, write the page. Returns the exit status. Of several processes, one works."""
    if not distributed.is_main():
        return 0
    trained = find_trained(argv)
    opt = trained.opt
    if trained.inferred:
        print(trained.inferred)
    loader = create_dataset(opt)
    model, files = trained.build(pick_device(opt.device, opt.gpu_ids))
    model.check_sizes({size for sizes in loader.dataset.sizes.values() for size in sizes})
    if opt.verbose:
        print(model.summary(verbose=True))
    for name, path in files.items():
        print(f"{name} is {path}")

    a, b = ("B", "A") if opt.direction == "BtoA" else ("A", "B")
    notes = {"run": opt.name, "model": opt.model, "weights": ", ".join(path.name for path in files.values())}
    folder = Path(opt.results_dir) / opt.name / f"{opt.phase}_{trained.label}"
    folder.mkdir(parents=True, exist_ok=True)
    opt.save(folder if trained.file else trained.run_dir)
    title = f"{opt.name}: {model.results_title.format(A=a, B=b)}"
    formats = loader.dataset.formats
    page = ResultsPage(folder, title, names=(a, b), notes=notes, size=opt.display_winsize, formats=formats)
    total = len(loader.dataset)
    count = int(min(opt.num_test, total))
    for caption, picture in model.overview(loader.dataset).items():
        page.add_overview(caption, picture)
    results = tqdm(itertools.islice(translate(model, loader), count), total=count, unit="image", disable=None)
    with create_log(opt, folder) as log:
        figures = add_results(page, results, aspect_ratio=opt.aspect_ratio, log=log)
    if len(figures) == count:
        l1, similarity = (sum(column) / len(figures) for column in zip(*figures, strict=True))
        page.notes |= {f"{a} → {b} against the {b} of the same name": f"L1 {l1:.1f} of 255, SSIM {similarity:.3f}"}
    page.save()
    limited = f", limited by --num_test {count}" if count < total else ""
    print(f"{count} of {total} images made{limited}. Open {folder / 'index.html'}")
    return 0


@contextlib.contextmanager
def create_log(opt: Options, folder: Path) -> Iterator[Log]:
    """Where results go beside the page: to Weights & Biases with --use_wandb, which keeps files in `folder`."""
    if not opt.use_wandb:
        yield lambda name, images: None
        return
    from util.display.wandb import WandbSink  # an optional dependency

    folder.mkdir(parents=True, exist_ok=True)
    sink = WandbSink(opt.wandb_project_name, opt.name, folder, config=opt.as_dict(), losses_freq=0, images_freq=0)
    with contextlib.closing(sink):
        yield sink.result


def add_results(
    page: ResultsPage, results: Iterable[Translation], *, aspect_ratio: float, log: Log
) -> list[tuple[float, float]]:
    """Put every result on the page and into the log, under the name of its file.

    Returns (L1 in 0..255, SSIM) of those whose truth is known.
    """
    figures = []
    names: set[str] = set()
    for result in results:
        free = itertools.chain([result.name], (f"{result.name}_{number}" for number in itertools.count(2)))
        name = next(name for name in free if name not in names)  # 1.jpg beside 1.png, one A that meets several Bs
        names.add(name)
        images = {key: stretch(image, aspect_ratio) for key, image in result.images.items()}
        page.add(name, images, result.attention)
        log(name, images)
        for label in TRUTH.keys() & result.images if result.paired else ():
            fake, truth = result.images[label][None], result.images[TRUTH[label]][None]
            if fake.shape != truth.shape:
                continue  # of one name, but no pair
            figures.append((mean_absolute_error(fake, truth).item(), ssim(fake, truth).item()))
    return figures


def translate(model: BaseModel, loader: EpochLoader) -> Iterator[Translation]:
    """Run the model over the data, one result an image."""
    for batch in loader:
        with watch(model.translators()) as attention:
            images = model(batch)
        for i, path in enumerate(batch["A_paths"]):
            name = relative_name(path, loader.dataset.A_paths)
            yield Translation(
                name=name,
                images={label: image[i] for label, image in images.items()},
                attention=[dataclasses.replace(block, weights=block.weights[i]) for block in attention],
                paired="B_paths" in batch and relative_name(batch["B_paths"][i], loader.dataset.B_paths) == name,
            )


def relative_name(path: str, paths: Sequence[Path]) -> str:
    """The name of a file, without suffix, relative to the folder that all of `paths` have in common."""
    root = os.path.commonpath([file.parent for file in paths])
    return str(Path(path).relative_to(root).with_suffix(""))


def stretch(image: Tensor, aspect_ratio: float) -> Tensor:
    """(C, H, W) with its width (above 1) or its height (below 1) enlarged by the ratio, as upstream shows results."""
    if aspect_ratio == 1:
        return image
    scale = (1.0, aspect_ratio) if aspect_ratio > 1 else (1 / aspect_ratio, 1.0)
    return F.interpolate(image[None], scale_factor=scale, mode="bicubic", align_corners=False)[0].clamp(-1, 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
