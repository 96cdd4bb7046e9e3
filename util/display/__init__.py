"""Shows a run while it trains: console and loss_log.txt, HTML page, visdom, wandb."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from options.base_options import Options
from util.display.console import ConsoleSink
from util.display.html import Attention, PageSink
from util.display.sink import Progress, Sink

__all__ = ["Display", "Progress", "Sink", "create_display", "crossed"]


def crossed(frequency: int, before: int, after: int) -> bool:
    """Whether a multiple of `frequency` lies in (before, after]; a frequency of 0 is never."""
    return frequency > 0 and after // frequency > before // frequency


class Display:
    """Passes losses and images on to the sinks whose turn it is."""

    def __init__(self, sinks: Sequence[Sink]):
        self.sinks = sinks

    def update(self, at: Progress, losses: Mapping[str, Tensor], pictures: Callable[[], Mapping[str, Tensor]]) -> None:
        """To call after every step, with its losses (scalars) and what makes the pictures (N, C, H, W) in [-1, 1].

        Losses are read from the device, and pictures made, only when a sink shows them, since that takes time.
        """
        pictures = cache(pictures)
        before = at.total_images - at.batch_size
        for sink in self.sinks:
            sink.step(at)
        due = [sink for sink in self.sinks if crossed(sink.losses_freq, before, at.total_images)]
        if due:
            values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
            numbers = dict(zip(losses, values, strict=True))
            for sink in due:
                sink.losses(at, numbers)
        for sink in self.sinks:
            if crossed(sink.images_freq, before, at.total_images):
                sink.images(at, pictures())

    def end_epoch(self, at: Progress, pictures: Callable[[], Mapping[str, Tensor]]) -> None:
        """To call after the last step of an epoch, with what makes its pictures."""
        pictures = cache(pictures)
        for sink in self.sinks:
            sink.end_epoch(at, pictures)

    def close(self) -> None:
        """To call when training ends or stops."""
        for sink in self.sinks:
            sink.close()


def create_display(opt: Options, run_dir: Path, attention: Attention = lambda images: []) -> Display:
    """The sinks that the flags ask for, writing into run_dir, CKPT/NAME.

    `attention` tells where networks look in the first of a batch of images, for the page.
    """
    losses_freq, size = opt.print_freq, opt.display_winsize
    sinks: list[Sink] = [ConsoleSink(run_dir / "loss_log.txt", losses_freq=losses_freq)]
    if not opt.no_html:
        names = ("A", "B") if opt.direction == "AtoB" else ("B", "A")
        command = f"python train.py --name {shlex.quote(opt.name)} --continue_train"
        if opt.given("checkpoints_dir"):
            command += f" --checkpoints_dir {shlex.quote(opt.checkpoints_dir)}"
        page = PageSink(
            run_dir / "web", opt.name, names=names, size=size, images_freq=opt.update_html_freq, attention=attention,
            options=opt.as_dict(), command=command,
        )  # fmt: skip
        sinks.append(page)
    if opt.display_id > 0:
        from util.display.visdom import VisdomSink, connect  # slow to import

        client = connect(opt.display_server, opt.display_port, opt.display_env)
        if client is not None:
            visdom = VisdomSink(
                client, opt.name, display_id=opt.display_id, columns=opt.display_ncols, size=size,
                append=opt.continue_train, losses_freq=losses_freq, images_freq=opt.display_freq,
            )  # fmt: skip
            sinks.append(visdom)
    if opt.use_wandb:
        from util.display.wandb import WandbSink  # an optional dependency

        wandb = WandbSink(
            opt.wandb_project_name, opt.name, run_dir, config=opt.as_dict(), losses_freq=losses_freq,
            images_freq=opt.display_freq,
        )  # fmt: skip
        sinks.append(wandb)
    return Display(sinks)
