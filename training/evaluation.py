"""Measure a model on a dataset: the figures of --metrics, in training and in testing."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from data.base_dataset import BaseDataset
from data.image_folder import common_folder, relative_name
from models.base_model import BaseModel
from models.networks.layers import evaluating
from options import values
from options.base_options import Options
from training.features import cache_key, create_extractor, read_cache, write_cache
from training.labels import LabelMaps, Labels
from training.meter import OF_PAIRS, OF_SETS, Meter, Records, figure, join
from training.metrics import check_count
from util import distributed
from util.images import in_color, label_formats
from util.registry import find_class
from util.rules import parse_rule

BATCH = 8  # images at a time, at least: on a GPU, single ones take several times longer
PHASES = ("val", "test")  # of held-out images, best first
# flags that decide what a real image looks like
LOOKS = (
    "model", "dataset_mode", "direction", "preprocess", "center_crop", "load_size", "crop_size", "value_range_A",
    "value_range_B", "label_A", "label_B", "input_nc", "output_nc", "seed",
)  # fmt: skip


def create_meter(opt: Options, device: torch.device, dataset: BaseDataset) -> Meter:
    """The meter that --metrics asks for.

    Args:
        device: of the network of features.
        dataset: that is measured, for --label_dir.

    Raises:
        ValueError: a package is not installed, or a file of weights or a label map has other content.
    """
    rules = [parse_rule(text) for text in opt.content]
    if opt.direction == "BtoA":
        rules = [rule.swapped() for rule in rules]
    sets = any(metric in OF_SETS for metric in opt.metrics)
    extractor = create_extractor(opt.metrics_features, opt.metrics_weights, device) if sets else None
    labels = create_labels(opt, dataset) if opt.label_dir and "content" in opt.metrics else None
    return Meter(opt.metrics, extractor, rules, labels)


def create_labels(opt: Options, dataset: BaseDataset) -> Labels:
    """The classes of pixels in the label maps of --label_dir.

    Raises:
        ValueError: a label map is missing or has other content, or does not fit cropped images.
    """
    resized = opt.preprocess != "resize_and_crop" or opt.load_size == opt.crop_size
    if opt.center_crop or opt.preprocess in ("crop", "scale_width_and_crop") or not resized:
        raise ValueError(
            "--label_dir: label maps are resized like their images, but not cropped: use images as a whole"
        )
    if not dataset.B_paths:
        raise ValueError(
            f"--label_dir needs images of two domains, which --dataset_mode {opt.dataset_mode} lacks: "
            '--label_dir "" leaves it out'
        )
    A, B = (Path(folder) for folder in values.label_dirs(opt.label_dir))
    folders = {"A": B, "B": A} if opt.direction == "BtoA" else {"A": A, "B": B}
    maps = LabelMaps(folders)
    for path in dataset.A_paths:
        maps.file("A", path.stem)
    return Labels.learn(maps, ((path.stem, dataset[0, index]["B"]) for index, path in enumerate(dataset.B_paths)))


class Measurement:
    """Collects what the images of a dataset contribute, and features of its real images if none are cached.

    Args:
        meter: what is measured.
        dataset: sample i is about the files number i of A and B, modulo their count.
        looks: what the real images depend on beside their files.
        count: use this many files of each domain at most.

    Attributes:
        formats: of the images by label. Label maps are measured in color.
    """

    def __init__(self, meter: Meter, dataset: BaseDataset, looks: Sequence[object], *, count: int):
        self.meter, self.dataset, self.formats = meter, dataset, label_formats(dataset.formats, dataset.formats)
        self.made = min(len(dataset.A_paths), count)
        self.paired = same_names(dataset)
        paths = (dataset.B_paths or dataset.A_paths)[:count]
        self.real_count = len(paths)
        self.key, self.real = "", None
        if meter.extractor is not None:
            self.key = cache_key(meter.extractor, paths, looks)
            self.real = read_cache(self.key)
        self.needs_real = meter.extractor is not None and self.real is None
        self.records: list[Records] = []
        self.reals: list[Tensor] = []

    @property
    def indices(self) -> range:
        """The samples to measure."""
        return range(max(self.made, self.real_count) if self.needs_real else self.made)

    def check(self) -> None:
        """Raise ValueError if the dataset has too few images for a metric, or no pairs for one that needs them."""
        pairs = [metric for metric in self.meter.metrics if metric in OF_PAIRS]
        if pairs and not any(self.paired):
            raise ValueError(
                f"the metric {pairs[0]} compares translations with their truth, but no image in "
                f"{common_folder(self.dataset.A_paths)} has the name of the one of the other domain: omit this metric"
            )
        for metric in self.meter.metrics:
            if metric in OF_SETS:
                check_count(metric, self.made, self.real_count)

    def add(self, images: Mapping[str, Tensor], indices: Sequence[int]) -> None:
        """Measure images (B, C, H, W) in [-1, 1] of the samples `indices`, by the labels that models give them."""
        images = {label.removesuffix("_rgb"): batch for label, batch in images.items()}
        new = [number for number, index in enumerate(indices) if index < self.made]
        if new:
            part = {label: batch[new] for label, batch in images.items()}
            if self.meter.labels:
                height, width = part["fake_B"].shape[2:]
                names = [self.dataset.A_paths[indices[number]].stem for number in new]
                part["label_A"] = self.meter.labels.maps.read("A", names, (height, width))
            self.records.append(self.meter.measure(part, [self.paired[indices[number]] for number in new]))
        real = [number for number, index in enumerate(indices) if index < self.real_count]
        if real and self.needs_real:
            self.reals.append(self.meter.features(images["real_B"][real]))

    def part(self) -> tuple[Records, list[Tensor]]:
        """What the images added so far contribute, and features of real ones."""
        return join(self.records), self.reals

    def figures(self, parts: Sequence[tuple[Records, list[Tensor]]]) -> dict[str, float]:
        """The figures of the parts of all processes: name -> value. Features of real images go to the cache.

        Raises:
            ValueError: there are too few images.
        """
        if self.needs_real:
            self.real = torch.cat([features for _, reals in parts for features in reals])
            write_cache(self.key, self.real)
        return self.meter.figures(join(records for records, _ in parts), self.real)

    def describe(self) -> str:
        """By which features and on what the figures are measured, in words."""
        domains = [self.dataset.A_paths, *([self.dataset.B_paths] if self.dataset.B_paths else [])]
        counts = dict.fromkeys(f"{number:,}" for number in (self.made, self.real_count))
        folders = dict.fromkeys(common_folder(paths).name for paths in domains)
        features = f"{self.meter.extractor.name}; " if self.meter.extractor else ""
        return f"{features}{' and '.join(counts)} images of {' and '.join(folders)}"


def same_names(dataset: BaseDataset) -> list[bool]:
    """For each file of A, whether that of B in its sample has the same name, so that it is the truth."""
    A, B = dataset.A_paths, dataset.B_paths
    root_A, root_B = common_folder(A), common_folder(B)
    return [
        bool(B) and relative_name(path, root_A) == relative_name(B[index % len(B)], root_B)
        for index, path in enumerate(A)
    ]


@dataclass(frozen=True)
class Best:
    """The best figure of a run so far.

    Attributes:
        figure: its name.
        value: None before the first one.
        images: seen in training.
    """

    figure: str
    value: float | None = None
    images: int = 0

    def is_beaten_by(self, value: float) -> bool:
        """Whether a value is better. NaN never is."""
        if self.value is None or math.isnan(value):
            return not math.isnan(value)
        return value > self.value if figure(self.figure).higher else value < self.value


class Evaluator:
    """Measures a model while it trains, on held-out images. All processes share the images.

    Computing the figures draws no random number and changes no network.

    Args:
        meter: what is measured.
        dataset: of held-out images, in order, without augmentation.
        looks: what the real images depend on beside their files.
        count: of images, at most.
        batch_size: images at a time, if their sizes are equal.
        best: figure by which the best checkpoint is kept; empty for none.
    """

    def __init__(
        self, meter: Meter, dataset: BaseDataset, looks: Sequence[object], *, count: int, batch_size: int, best: str
    ):
        self.meter, self.dataset, self.looks, self.count, self.batch_size = meter, dataset, looks, count, batch_size
        self.best = Best(best)
        self.is_best = False
        self.describe = Measurement(meter, dataset, looks, count=count).describe

    def evaluate(self, model: BaseModel, *, images: int) -> dict[str, float]:
        """The figures of the model: name -> value; none on other ranks than 0.

        It also sets `is_best`, in all processes.

        Args:
            model: in training.
            images: seen so far in training.
        """
        measurement = Measurement(self.meter, self.dataset, self.looks, count=self.count)
        measurement.needs_real = bool(distributed.all_reduce_max(measurement.needs_real))  # caches may differ
        distributed.broadcast(model)  # running statistics of batch norm differ, and those of rank 0 are saved
        own = measurement.indices[distributed.rank() :: distributed.world_size()]
        self.measure(model, measurement, own)
        parts = distributed.gather(measurement.part())
        figures = measurement.figures(parts) if parts else {}
        value = figures.get(self.best.figure, math.nan)
        if better := self.best.is_beaten_by(value):
            self.best = Best(self.best.figure, value, images)
        self.is_best = bool(distributed.all_reduce_max(better))
        return figures

    def check(self, model: BaseModel) -> None:
        """Measure the first image, to find out whether the model, the images and the metrics fit each other.

        Raises:
            ValueError: they do not.
        """
        measurement = Measurement(self.meter, self.dataset, self.looks, count=self.count)
        names = self.meter.names()
        if self.best.figure and self.best.figure not in names:
            raise ValueError(
                f"best={self.best.figure} is not measured: choose from {', '.join(names)}, or other metrics"
            )
        measurement.check()
        self.measure(model, measurement, range(1))

    def measure(self, model: BaseModel, measurement: Measurement, indices: Iterable[int]) -> None:
        """Run the model on samples of the dataset, with averaged weights if there are any."""
        cycle = "cycle" in self.meter.metrics
        with with_averaged_weights(model):
            for numbers, batch in self.batches(indices):
                with model.optimization.autocast():
                    images = model.measured(batch, cycle=cycle)
                measurement.add(in_color(images, measurement.formats), numbers)

    def batches(self, indices: Iterable[int]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Batches of samples of one size, with their numbers."""
        remaining = iter(indices)
        with ThreadPoolExecutor() as pool:
            while numbers := list(itertools.islice(remaining, self.batch_size)):
                loaded = zip(numbers, pool.map(lambda index: self.dataset[0, index], numbers), strict=True)
                for _, group in itertools.groupby(loaded, key=lambda pair: shapes(pair[1])):
                    part, samples = zip(*group, strict=True)
                    yield list(part), default_collate(list(samples)) | {"index": part}

    @cached_property
    def untranslated(self) -> dict[str, float]:
        """The figures of content that the inputs themselves have, by rules: a translation should have better ones."""
        if "content" not in self.meter.metrics or not self.meter.rules:
            return {}
        meter = Meter(["content"], rules=self.meter.rules)
        measurement = Measurement(meter, self.dataset, self.looks, count=self.count)
        for numbers, batch in self.batches(range(measurement.made)):
            images = in_color({"real_A": batch["A"], "real_B": batch["B"]}, measurement.formats)
            measurement.add(images | {"fake_B": images["real_A"]}, numbers)
        return measurement.figures([measurement.part()])

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, as plain values."""
        return asdict(self.best)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the best figure so far, if it is the one that is asked for."""
        if state["figure"] == self.best.figure:
            self.best = Best(**state)


def create_measurement(opt: Options, dataset: BaseDataset, device: torch.device) -> Measurement:
    """The measurement of --metrics on the images that test.py translates.

    Raises:
        ValueError: a package is not installed, a label map is missing, there are too few images, or no pairs for a
            metric that needs them.
    """
    meter = create_meter(opt, device, dataset)
    measurement = Measurement(meter, dataset, looks(opt), count=int(min(opt.num_test, len(dataset))))
    measurement.check()
    return measurement


def create_evaluator(opt: Options, model: BaseModel) -> Evaluator | None:
    """The evaluator that --metrics asks for; None without the flag.

    Raises:
        ValueError: there are no held-out images, too few, or images that do not suit the metrics.
    """
    if not opt.metrics:
        return None
    resized = {"load_size": opt.crop_size} if opt.preprocess.endswith("_and_crop") else {}
    held_out = opt.replaced(
        phase=held_out_phase(opt, model), no_flip=True, serial_batches=True, max_dataset_size=opt.metrics_images,
        **resized,
    )  # fmt: skip
    dataset: BaseDataset = find_class("data", opt.dataset_mode)(held_out)
    evaluator = Evaluator(
        create_meter(held_out, model.device, dataset), dataset, looks(held_out), count=opt.metrics_images,
        batch_size=max(opt.batch_size, BATCH), best=opt.best,
    )  # fmt: skip
    evaluator.check(model)
    return evaluator


def looks(opt: Options) -> list[object]:
    """Everything that real images depend on beside their files."""
    return [opt.is_train, *((flag, opt.as_dict()[flag]) for flag in LOOKS)]


def held_out_phase(opt: Options, model: BaseModel) -> str:
    """The phase of the images to measure on. A model that makes images from noise does without held-out ones.

    Raises:
        ValueError: there are no held-out images.
    """
    root = Path(opt.dataroot)
    for phase in PHASES:
        if any((root / f"{phase}{domain}").is_dir() for domain in ("A", "B", "")):
            return phase
    if model.test_dataset_mode == "noise":
        return str(opt.phase)
    raise ValueError(
        f"--metrics {','.join(opt.metrics)} needs images that are not trained on, in {root}: put some into "
        + ("val" if opt.dataset_mode in ("aligned", "colorization") else "valA and valB")
    )


def shapes(sample: Mapping[str, Any]) -> list[torch.Size]:
    """The shapes of the tensors of a sample."""
    return [value.shape for value in sample.values() if isinstance(value, Tensor)]


@contextmanager
def with_averaged_weights(model: BaseModel) -> Iterator[None]:
    """Put averaged networks in the place of plain ones, all in eval mode, and record no gradients.

    When the block ends, everything is as before.
    """
    networks = dict(model.named_children())
    with evaluating(model), torch.no_grad():
        for name, net in networks.items():
            if name.endswith("_ema"):
                setattr(model, name.removesuffix("_ema"), net)
        try:
            yield
        finally:
            for name, net in networks.items():
                setattr(model, name, net)
