"""Pass losses and images of the training loop to the log of the run and to the sinks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from display.attention_maps import AttentionMap, attention_label
from display.event_log import EventLog
from display.events import End, Event, Health, Images, Losses, Metrics, Progress, Start
from display.sink import Sink
from util.device import peak_memory
from util.images import PixelFormat, in_color, to_tensor

Attention = Callable[[dict[str, Tensor]], list[AttentionMap]]  # takes the images that `model.preview` returns


class Display:
    """Writes events to the log and passes them to the sinks.

    Args:
        log: log of the run.
        sinks: what shows the events.
        at: where training starts.
        losses_freq: images seen between two events with losses; 0 is never.
        attention: images -> the attention maps of the networks for the first of each.
        formats: of the images by label, of which label maps are shown in color.
    """

    def __init__(
        self,
        log: EventLog,
        sinks: Sequence[Sink],
        *,
        at: Progress,
        losses_freq: int,
        attention: Attention = lambda images: [],
        formats: Mapping[str, PixelFormat] = MappingProxyType({}),
    ):
        self.attention, self.formats = attention, formats
        self.log, self.sinks, self.losses_freq = log, sinks, losses_freq
        self.last = self.measured = at
        self.seconds_before = 0.0  # of training, before the run was resumed

    def start(self, options: Mapping[str, Any], *, resumed: bool = False) -> None:
        """Start the display before the first step. With `resumed`, events after this position leave the log."""
        if resumed:
            self.seconds_before = self.log.truncate(self.last)
        else:
            self.log.start_over()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._show(Start.at(self.last, time=now, resumed=resumed, options=dict(options)))

    def update(
        self,
        at: Progress,
        losses: Mapping[str, Tensor],
        images: Callable[[], Mapping[str, Tensor]],
        learning_rates: Callable[[], Mapping[str, float]],
    ) -> None:
        """Show what is due after a step. Losses are copied from the device only when they are shown.

        Args:
            at: where training is.
            losses: scalars of the step.
            images: returns the images, (B, C, H, W) in [-1, 1]; called only when they are shown.
            learning_rates: returns the learning rates, lr_G and so on; called only when they are shown.
        """
        if at.crossed(self.losses_freq):
            numbers = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
            values = dict(zip(losses, numbers, strict=True)) | dict(learning_rates())
            seconds = max(at.seconds - self.measured.seconds, 1e-9)  # the clock of Windows may stand still
            values["images_per_second"] = (at.images - self.measured.images) / seconds
            values["peak_memory_mb"] = peak_memory() / 2**20
            self.measured = at
            self._show(Losses.at(at, values=values))
        if any(sink.wants_images(at) for sink in self.sinks):
            self._show_images(at, dict(images()))
        for sink in self.sinks:
            sink.step(at)
        self.last = at

    def show_metrics(
        self, at: Progress, values: Mapping[str, float], *, note: str, best: str = "", is_best: bool = False
    ) -> None:
        """Show metrics.

        Args:
            at: where training is.
            values: name -> value.
            note: by which features and on what they were measured.
            best: name of the metric by which the best checkpoint is kept; empty for none.
            is_best: this is the best one so far.
        """
        self._show(Metrics.at(at, values=dict(values), note=note, best=best, is_best=is_best))

    def health(self, at: Progress, **finding: Any) -> None:
        """Show a finding: the fields of `training.health.Finding`."""
        self._show(Health.at(at, **finding))

    def close(self, reason: str) -> None:
        """Close the sinks. `reason` is finished, stopped or failed."""
        self._show(End.at(self.last, reason=reason))
        for sink in self.sinks:
            sink.close()

    def _show_images(self, at: Progress, images: dict[str, Tensor]) -> None:
        """Show images and the attention of the generators over them."""
        attention = [block[0] for block in self.attention(images)]
        images = in_color(images, self.formats)
        figures = {
            attention_label(block): to_tensor(block.figure(images[block.over][0]))[None]
            for block in attention
            if block.network.startswith("G")
        }
        script = self.log.save_attention(at, attention)
        self._show(Images.at(at, files=self.log.save_images(at, images | figures), attention=script))

    def _show(self, event: Event) -> None:
        event = replace(event, seconds=self.seconds_before + event.seconds)
        self.log.write(event)
        for sink in self.sinks:
            sink.show([event])


class NoDisplay(Display):
    """Shows and writes nothing: for every rank but 0."""

    def __init__(self) -> None:
        pass

    def update(self, *args: Any, **keywords: Any) -> None:
        """Do nothing."""

    def show_metrics(self, *args: Any, **keywords: Any) -> None:
        """Do nothing."""

    def close(self, reason: str) -> None:
        """Do nothing."""
