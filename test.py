"""Translate images with a trained model: python test.py --name maps. Writes results/maps/test_latest/index.html."""

import contextlib
import dataclasses
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data import EpochLoader, create_dataset
from models.base_model import BaseModel
from models.networks.attention import AttentiveChain, SelfAttention2d
from models.translator import find_trained, fitting_size
from util.attention import AttentionMap, query_points
from util.command import run_command
from util.device import pick_device
from util.html import ResultsPage
from util.metrics import mean_absolute_error, ssim


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a model made of one test image."""

    name: str  # of its file, without suffix, relative to the folder of all
    images: dict[str, Tensor]  # label -> (C, H, W) in [-1, 1]
    attention: list[AttentionMap]
    paired: bool  # real_B has the same name as real_A, so it should be the true translation


def main(argv: list[str] | None = None) -> int:
    """Parse, load, translate every image, write the page. Returns the exit status."""
    trained = find_trained(argv)
    opt = trained.opt
    if trained.inferred:
        print(trained.inferred)
    loader = create_dataset(opt)
    model, files = trained.build(pick_device(opt.device, opt.gpu_ids))
    model.check_sizes({size for sizes in loader.dataset.sizes.values() for size in sizes})
    for name, path in files.items():
        print(f"{name} is {path}")

    a, b = ("B", "A") if opt.direction == "BtoA" else ("A", "B")
    notes = {"run": opt.name, "model": opt.model, "weights": ", ".join(path.name for path in files.values())}
    folder = Path(opt.results_dir) / opt.name / f"{opt.phase}_{trained.label}"
    folder.mkdir(parents=True, exist_ok=True)
    opt.save(folder if trained.file else trained.run_dir)
    page = ResultsPage(folder, f"{opt.name}: {a} → {b}", names=(a, b), notes=notes, size=opt.display_winsize)
    total = len(loader.dataset)
    count = int(min(opt.num_test, total))
    results = itertools.islice(translate(model, loader), count)
    figures = add_results(page, tqdm(results, total=count, unit="image", disable=None), aspect_ratio=opt.aspect_ratio)
    if len(figures) == count:
        l1, similarity = (sum(column) / len(figures) for column in zip(*figures, strict=True))
        page.notes |= {f"{a} → {b} against the {b} of the same name": f"L1 {l1:.1f} of 255, SSIM {similarity:.3f}"}
    page.save()
    limited = f", limited by --num_test {count}" if count < total else ""
    print(f"{count} of {total} images translated{limited}. Open {folder / 'index.html'}")
    return 0


def add_results(page: ResultsPage, results: Iterable[Translation], *, aspect_ratio: float) -> list[tuple[float, float]]:
    """Put every result on the page, under the name of its file; (L1 in 0..255, SSIM) of those whose truth is known."""
    figures = []
    names: Counter[str] = Counter()
    for result in results:
        name = result.name
        names[name] += 1
        if names[name] > 1:  # 1.jpg beside 1.png, or one A that meets several Bs
            name = f"{name}_{names[name]}"
        page.add(name, {key: stretch(image, aspect_ratio) for key, image in result.images.items()}, result.attention)
        if result.paired:
            fake, truth = result.images["fake_B"][None], result.images["real_B"][None]
            if fake.shape != truth.shape:
                continue  # of one name, but no pair
            figures.append((mean_absolute_error(fake, truth).item(), ssim(fake, truth).item()))
    return figures


def translate(model: BaseModel, loader: EpochLoader) -> Iterator[Translation]:
    """Run the model over the data, one result an image."""
    networks = {
        name: (over, net)
        for name, (over, net) in model.translators().items()
        if isinstance(net, AttentiveChain) and net.attention
    }
    for batch in loader:
        with contextlib.ExitStack() as stack:
            inputs = {name: stack.enter_context(net.block_inputs()) for name, (_, net) in networks.items()}
            images = model(batch)
        attention = []
        for name, (over, net) in networks.items():
            for stage, x in inputs[name].items():
                block = net.attention[stage]
                assert isinstance(block, SelfAttention2d)
                height, width = visible_cells(net, images[over].shape[2:], x.shape[2:])
                points = query_points(height, width)
                weights = block.look_from(points, x)[..., :height, :width]
                attention.append(AttentionMap(name, stage, over, points, weights))
        for i, path in enumerate(batch["A_paths"]):
            name = relative_name(path, loader.dataset.A_paths)
            yield Translation(
                name=name,
                images={label: image[i] for label, image in images.items()},
                attention=[dataclasses.replace(block, weights=block.weights[i]) for block in attention],
                paired="B_paths" in batch and relative_name(batch["B_paths"][i], loader.dataset.B_paths) == name,
            )


def visible_cells(net: nn.Module, size: Sequence[int], cells: Sequence[int]) -> tuple[int, int]:
    """How many rows and columns of a map of `cells` show the picture of `size` itself, not what padding added."""
    padded = fitting_size(net, size)
    rows, columns = (math.ceil(n * side / whole) for n, side, whole in zip(cells, size, padded, strict=True))
    return rows, columns


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
