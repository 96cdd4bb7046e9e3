"""The metrics of --metrics: what each image contributes, and the figures of all images together."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.content import gray_levels
from training.features import Extractor
from training.labels import Labels
from training.metrics import (
    edge_correlation,
    frechet_distance,
    kernel_distance,
    mean_absolute_error,
    mutual_information,
    overlap,
    precision_recall,
    psnr,
    ssim,
)
from util.errors import RemediedError
from util.rules import Rule

OF_SETS = ("kid", "fid", "precision_recall")  # compare features of two sets of images
OF_PAIRS = {"l1": mean_absolute_error, "psnr": psnr, "ssim": ssim}  # compare an image with its truth
OF_SHAPES = {"edges": edge_correlation, "information": mutual_information}  # content, without rules

Records = dict[str, Tensor]  # what images contribute: name -> (N, ...), a row for each image


@dataclass(frozen=True)
class Figure:
    """A figure of merit.

    Attributes:
        title: in words, with its unit.
        format: of its value.
        higher: whether higher is better.
    """

    title: str
    format: str
    higher: bool

    def text(self, value: float) -> str:
        """The value with its title: KID x1000 12.34."""
        return f"{self.title} {self.format.format(value)}"


FIGURES = {
    "kid": Figure("KID x1000", "{:.2f}", higher=False),
    "fid": Figure("FID", "{:.2f}", higher=False),
    "precision": Figure("precision", "{:.3f}", higher=True),
    "recall": Figure("recall", "{:.3f}", higher=True),
    "l1": Figure("L1 (0..255)", "{:.1f}", higher=False),
    "psnr": Figure("PSNR (dB)", "{:.1f}", higher=True),
    "ssim": Figure("SSIM", "{:.3f}", higher=True),
    "cycle": Figure("cycle L1 (0..255)", "{:.1f}", higher=False),
    "edges": Figure("edge correlation", "{:.3f}", higher=True),
    "information": Figure("mutual information (bits)", "{:.3f}", higher=True),
}
OF_FEATURES = ("kid", "fid", "precision", "recall")  # figures that depend on the extractor


def figure(name: str) -> Figure:
    """The figure of a name: one of FIGURES, or iou_CLASS."""
    return FIGURES.get(name) or Figure(f"IoU of {name.removeprefix('iou_')}", "{:.3f}", higher=True)


@dataclass(frozen=True)
class Meter:
    """Measures translations, or generated images.

    Args:
        metrics: some of METRICS in options/choices.py.
        extractor: of features; None if no metric compares sets of images.
        rules: classes of pixels whose IoU is the metric `content`.
        labels: more such classes, by label maps. Without both, it compares edges and gray values.
    """

    metrics: Sequence[str]
    extractor: Extractor | None = None
    rules: Sequence[Rule] = ()
    labels: Labels | None = None

    def names(self) -> list[str]:
        """The figures, in order."""
        content = [f"iou_{rule.name}" for rule in self.rules]
        content += self.labels.names() if self.labels else []
        content = content or list(OF_SHAPES)
        several = {"precision_recall": ["precision", "recall"], "content": content}
        return [name for metric in self.metrics for name in several.get(metric, [metric])]

    @property
    def compares_sets(self) -> bool:
        """Whether a metric compares features of two sets of images."""
        return any(metric in OF_SETS for metric in self.metrics)

    def features(self, images: Tensor) -> Tensor:
        """The features (B, D) of images (B, C, H, W) in [-1, 1]."""
        assert self.extractor is not None
        return self.extractor(images)

    @torch.no_grad()
    def measure(self, images: Mapping[str, Tensor], paired: Sequence[bool]) -> Records:
        """What images contribute.

        Args:
            images: label -> (B, C, H, W) in [-1, 1]: fake_B, and real_A, real_B and rec_A if there are any; label_A,
                the label maps (B, H, W) of A.
            paired: for each image, whether its real_B is the truth, because it has the same name.
        """
        records: Records = {}
        fake = images["fake_B"].float()
        if self.compares_sets:
            records["features"] = self.features(fake)
        truth = torch.tensor([pair and images["real_B"].shape == fake.shape for pair in paired])
        for metric in self.metrics:
            if metric in OF_PAIRS and truth.any():
                records[metric] = OF_PAIRS[metric](fake[truth], images["real_B"][truth].float())
        if "cycle" in self.metrics:
            if "rec_A" not in images:
                raise ValueError("cycle is for models that translate back, such as cycle_gan")
            records["cycle"] = mean_absolute_error(images["rec_A"].float(), images["real_A"].float())
        if "content" in self.metrics:
            records |= self.content(images, truth)
        return {name: values.cpu() for name, values in records.items()}

    def content(self, images: Mapping[str, Tensor], truth: Tensor) -> Records:
        """What images contribute to the metric `content`.

        Masks of fake_B are compared with those of their truth, if real_B is that, and else with those of real_A.

        Raises:
            ValueError: there is nothing to compare fake_B with.
        """
        fake = images["fake_B"].float()
        records: Records = {}
        for rule in self.rules:
            if "B" not in rule.conditions:
                raise ValueError(f"content: the rule of {rule.name} has no condition for domain B, in which fakes are")
            found = rule.mask("B", channels(fake))
            if truth.all():
                wanted = rule.mask("B", channels(images["real_B"].float()))
            elif "A" in rule.conditions and "real_A" in images:
                wanted = rule.mask("A", channels(images["real_A"].float()))
            else:
                raise ValueError(
                    f"content: without pairs, {rule.name} needs a condition for domain A too, such as "
                    f"'{rule.name}: A(R > 150); B(B > R)'"
                )
            records[f"iou_{rule.name}"] = overlap(found, wanted)
        if self.labels:
            records |= self.labels.overlaps(fake, images["label_A"])
        if not self.rules and not self.labels:
            if "real_A" not in images:
                raise ValueError("content compares a translation with its input, and these images have none")
            real = images["real_A"].float()
            records |= {name: compare(fake, real) for name, compare in OF_SHAPES.items()}
        return records

    def figures(self, records: Records, reals: Tensor | None = None) -> dict[str, float]:
        """The figures of all images: name -> value.

        Args:
            records: of all images.
            reals: features of the real images (N, D), for metrics that compare sets.

        Raises:
            ValueError: there are too few images, or no pairs for a metric that needs them.
        """
        values: dict[str, float] = {}
        for name in self.names():
            if name in OF_FEATURES:
                continue
            if name not in records:
                raise RemediedError(
                    f"{name} compares images with their truth, but no image of B has the name and the size of one of A."
                )
            if name.startswith("iou_"):
                both, either = records[name].sum(0).tolist()
                values[name] = both / either if either else math.nan
            else:
                values[name] = records[name].double().mean().item()
        if self.compares_sets:
            assert reals is not None
            values |= self.compare_sets(records["features"], reals)
        return {name: values[name] for name in self.names()}

    def compare_sets(self, fakes: Tensor, reals: Tensor) -> dict[str, float]:
        """The figures of features (N, D) and (M, D)."""
        values: dict[str, float] = {}
        if "kid" in self.metrics:
            values["kid"] = 1000 * kernel_distance(fakes, reals)
        if "fid" in self.metrics:
            values["fid"] = frechet_distance(fakes, reals)
        if "precision_recall" in self.metrics:
            values["precision"], values["recall"] = precision_recall(fakes, reals)
        return values


def in_words(values: Mapping[str, float]) -> str:
    """Figures with their titles: KID x1000 12.34, SSIM 0.310."""
    return ", ".join(figure(name).text(value) for name, value in values.items())


def join(records: Iterable[Records]) -> Records:
    """The records of all images, from those of parts."""
    parts = list(records)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def channels(images: Tensor) -> dict[str, Tensor]:
    """R, G and B of gray or color images (B, C, H, W) in [-1, 1], rounded to 0..255: (B, H, W) each.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
    return {name: values.round().clamp(0, 255) for name, values in gray_levels(images).items()}
