"""From the training loop to the log of the run, and from there to the sinks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import torch
from torch import Tensor

from display.attention_maps import AttentionMap
from display.event_log import EventLog
from display.events import End, Event, Images, Losses, Progress, Start
from display.sink import Sink
from util.device import peak_memory
from util.images import to_tensor

Attention = Callable[[dict[str, Tensor]], list[AttentionMap]]  # of images as `model.preview` makes them


class Display:
    """Writes what happens to the log, and passes it on to the sinks.

    Args:
        at: where training starts.
        losses_freq: images between two readings of losses; 0 = never.
        attention: images -> the attention maps of the networks for the first of each.
    """

    def __init__(
        self,
        log: EventLog,
        sinks: Sequence[Sink],
        *,
        at: Progress,
        losses_freq: int,
        attention: Attention = lambda images: [],
    ):
        self.attention = attention
        self.log, self.sinks, self.losses_freq = log, sinks, losses_freq
        self.last = self.measured = at
        self.seconds_before = 0.0  # of a run that goes on

    def start(self, options: Mapping[str, Any], *, resumed: bool = False) -> None:
        """To call before the first step. A run that is `resumed` loses what its log has from after this point."""
        if resumed:
            self.seconds_before = self.log.cut(self.last)
        else:
            self.log.start_anew()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._show(Start.at(self.last, time=now, continued=resumed, options=dict(options)))

    def update(
        self,
        at: Progress,
        losses: Mapping[str, Tensor],
        images: Callable[[], Mapping[str, Tensor]],
        rates: Callable[[], Mapping[str, float]],
    ) -> None:
        """Call it after every step. Losses are read from the device only when they are shown, which takes time.

        Args:
            losses: of the step, scalars.
            images: makes the images, (N, C, H, W) in [-1, 1]; called only when they are shown.
            rates: returns the learning rates, lr_G and so on.
        """
        if at.crossed(self.losses_freq):
            numbers = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
            values = dict(zip(losses, numbers, strict=True)) | dict(rates())
            values["images_per_second"] = (at.images - self.measured.images) / (at.seconds - self.measured.seconds)
            values["peak_memory_mb"] = peak_memory() / 2**20
            self.measured = at
            self._show(Losses.at(at, values=values))
        if any(sink.wants_images(at) for sink in self.sinks):
            made = dict(images())
            attention = [block[0] for block in self.attention(made)]
            figures = {
                f"attention_{block.network}_{block.stage}": to_tensor(block.figure(made[block.over][0]))[None]
                for block in attention
                if block.network.startswith("G")
            }
            script = self.log.save_attention(at, attention)
            self._show(Images.at(at, pictures=self.log.save_images(at, made | figures), attention=script))
        for sink in self.sinks:
            sink.step(at)
        self.last = at

    def close(self, reason: str) -> None:
        """To call when training has `finished`, `stopped` or `failed`."""
        self._show(End.at(self.last, reason=reason))
        for sink in self.sinks:
            sink.close()

    def _show(self, event: Event) -> None:
        event = replace(event, seconds=self.seconds_before + event.seconds)
        self.log.write(event)
        for sink in self.sinks:
            sink.show([event])


class NoDisplay(Display):
    """Shows and writes nothing: for all of several processes but the first."""

    def __init__(self) -> None:
        pass

    def update(self, *args: Any, **keywords: Any) -> None:
        """Nothing."""

    def close(self, reason: str) -> None:
        """Nothing."""
