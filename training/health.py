"""The health of a run: what the checks of `training.health_checks` find in its images, losses, attention and speed."""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.base_model import BaseModel, GeneratorView, Images, Losses
from models.networks.layers import evaluating
from training.health_checks import (
    CHECKS,
    Check,
    Cycle,
    Look,
    LossScale,
    LossSeries,
    Scores,
    StepTimes,
    degraded,
    thumbnails,
)

IMAGES = 4  # of a batch, at most, so that the cost does not grow with the batch
THUMBNAILS = 16  # of each generator, for its diversity: with a batch of 1, from as many looks
LOSSES = 32  # values of each loss, for its swings


@dataclass(frozen=True)
class Finding:
    """What a check finds, when it begins and again when it is over.

    Attributes:
        check: name of the check.
        subject: what it is about, such as G_A; "" for the whole run.
        sentence: what is found.
        advice: flags to try, as a sentence; may be empty.
        figure: what the check measured.
        over: whether it is over.
    """

    check: str
    subject: str
    sentence: str
    advice: str
    figure: float
    over: bool


class Health:
    """Looks at a run from time to time, and tells what begins to go wrong and what is over.

    Training does not change: a look draws no random numbers, updates no weight and no buffer. Of several processes,
    rank 0 alone looks. Figures are not saved with a checkpoint: a resumed run collects new ones before it checks them.

    Args:
        model: in training.
        options: of the run, for advice: flag -> value.
        ongoing: check and subject of the findings that are known already, such as those in the log of a resumed run.
    """

    def __init__(self, model: BaseModel, options: Mapping[str, Any], ongoing: Iterable[tuple[str, str]] = ()):
        self.model, self.ongoing = model, set(ongoing)
        self.options = {flag: value for flag, value in options.items() if flag not in model.unused_flags}
        self.comparable = options.get("label_A") == options.get("label_B")  # classes are not like other images
        self.figures: dict[tuple[str, str], deque[float]] = {}
        self.losses: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LOSSES))
        self.thumbnails: dict[tuple[str, str], deque[Tensor]] = defaultdict(lambda: deque(maxlen=THUMBNAILS))
        self.seconds = self.waiting = 0.0  # since the last look
        self.scale: tuple[float, int] | None = None  # of losses, and the step
        self.seen: dict[tuple[str, type], object] = {}  # since the last look

    def count(self, *, seconds: float, waiting: float) -> None:
        """Count the seconds that a step took, and those of waiting for its images."""
        self.seconds += seconds
        self.waiting += waiting

    def see(self, things: Mapping[str, object]) -> None:
        """Keep something for the next look, in place of the last one of its kind.

        Args:
            things: subject -> an object of a class that checks are `of`, such as Attention or Content.
        """
        self.seen |= {(subject, type(thing)): thing for subject, thing in things.items()}

    def look(self, steps: int, losses: Losses, images: Images, *, loss_scale: float | None = None) -> list[Finding]:
        """Look at a step.

        Args:
            steps: of the run so far.
            losses: scalars, as `model.step` returns them.
            images: (B, C, H, W) in [-1, 1], as `model.step` returns them.
            loss_scale: the factor of fp16 losses.

        Returns:
            What begins, and what is over.
        """
        self.see({"": StepTimes(self.seconds, self.waiting)})
        self.seconds = self.waiting = 0.0
        if loss_scale is not None:
            if self.scale is not None:
                before, at = self.scale
                self.see({"": LossScale(before, loss_scale, steps - at)})
            self.scale = loss_scale, steps
        names = [name for name in losses if not name.startswith("gamma_")]
        values = torch.stack([losses[name].detach().float() for name in names]).tolist()
        for name, value in zip(names, values, strict=True):
            self.losses[name].append(value)
            self.see({name: LossSeries(tuple(self.losses[name]))})
        few = {label: batch[:IMAGES].detach().float() for label, batch in images.items()}
        with evaluating(self.model):
            self.see({name: self._look(name, view, few) for name, view in self.model.generator_views().items()})
        found = [
            self._update(check, subject, thing)
            for (subject, _), thing in self.seen.items()
            for check in CHECKS
            if isinstance(thing, check.of) and steps >= check.warm_up
        ]
        self.seen.clear()
        return [finding for finding in found if finding is not None]

    def _update(self, check: Check, subject: str, seen: object) -> Finding | None:
        """Add a figure of a check to the last ones, and check their median."""
        figure = check.measure(seen)
        if figure is None or not math.isfinite(figure):
            return None
        key = check.name, subject
        figures = self.figures.setdefault(key, deque(maxlen=check.looks))
        figures.append(figure)
        median = statistics.median(figures)
        known = key in self.ongoing
        if len(figures) < check.looks or check.finds(median) == known:
            return None
        self.ongoing ^= {key}
        figures.clear()  # so a figure near the threshold does not begin and end again and again
        sentence = check.sentence.format(subject=subject, figure=median)
        return Finding(check.name, subject, sentence, check.advice(self.options, subject), median, over=known)

    def _look(self, name: str, view: GeneratorView, images: Images) -> Look:
        """Look at one generator, in eval mode."""

        def with_earlier(label: str) -> Tensor:
            kept = self.thumbnails[name, label]
            kept.extend(thumbnails(images[label]).cpu())
            return torch.stack(list(kept))

        return Look(
            fake=images[view.fake], real=images[view.real],
            fakes=with_earlier(view.fake), reals=with_earlier(view.real),
            source=images[view.source] if view.source and self.comparable else None,
            sources=with_earlier(view.source) if view.source else None,
            paired=view.paired, scores=self._scores(view, images), cycle=self._cycle(view, images),
        )  # fmt: skip

    def _scores(self, view: GeneratorView, images: Images) -> Scores | None:
        """The scores of the discriminator and its gradient for generated images."""
        if view.score is None:
            return None
        fake = images[view.fake].clone().requires_grad_()
        with torch.enable_grad(), self.model.optimization.autocast():
            with torch.no_grad():
                on_real = view.score(images, view.real)
            on_fake = view.score(images | {view.fake: fake}, view.fake)
        # of the sum, since the gradient of the mean over many patches underflows in fp16
        (gradient,) = torch.autograd.grad(on_fake.float().sum(), fake)
        return Scores(on_real, on_fake.detach(), gradient * len(fake) / on_fake.numel())

    @torch.no_grad()
    def _cycle(self, view: GeneratorView, images: Images) -> Cycle | None:
        """Translate back, from the translation and from a degraded one."""
        if view.back is None:
            return None
        fake, source = images[view.fake], images[view.source]
        with self.model.optimization.autocast():
            rec, rec_of_degraded = view.back(fake), view.back(degraded(fake))
        return Cycle(source, degraded(source), rec, rec_of_degraded)
