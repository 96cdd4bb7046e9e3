"""Create the display of a training run and its sinks from the flags."""

import importlib.util
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from display.background import Background
from display.display import Attention, Display
from display.event_log import EventLog
from display.events import Progress
from display.sink import Sink
from display.sinks.console import ConsoleSink
from display.sinks.loss_log import LossLogSink
from options.base_options import Options
from training.resume import resume_command
from util.images import PixelFormat

if TYPE_CHECKING:
    from display.sinks.wandb import WandbSink

log = logging.getLogger(__name__)

SinkName = Literal["log", "html", "visdom", "tensorboard", "wandb"]

OPTIONAL = ("tensorboard", "wandb")  # packages; --use_PACKAGE needs it


def check_packages(opt: Options) -> None:
    """Check that the optional packages of --use_tensorboard and --use_wandb are installed.

    Scripts call it before they write anything.

    Raises:
        ValueError: a package is not installed.
    """
    flags = opt.as_dict()  # those of test.py lack --use_tensorboard
    for package in OPTIONAL:
        if flags.get(f"use_{package}"):
            require_package(package, f"--use_{package}")


def require_package(package: str, flag: str) -> None:
    """Raise ValueError if the package that `flag` needs is not installed."""
    if not is_installed(package):
        raise ValueError(f"{flag} needs the package {package}. Install it: pip install {package}")


def is_installed(package: str) -> bool:
    """Whether a package can be imported. A mere folder of that name, such as wandb makes, does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def create_display(
    opt: Options,
    run_dir: Path,
    at: Progress,
    attention: Attention = lambda images: [],
    *,
    resumed: bool = False,
    formats: Mapping[str, PixelFormat] = MappingProxyType({}),
) -> Display:
    """Create the display that the flags ask for, and start it.

    Args:
        run_dir: CKPT/NAME, where it writes.
        at: where training starts.
        attention: images -> the attention maps of the networks for the first of each.
        resumed: append to what was shown of the run before `at`. Otherwise the display starts empty.
        formats: of the images by label, of which label maps are shown in color.

    Raises:
        ValueError: a flag needs a package that is not installed.
    """
    check_packages(opt)
    event_log = EventLog(run_dir)
    sinks = [ConsoleSink(), create_sink("log", opt, run_dir)]
    if not opt.no_html:
        sinks.append(create_sink("html", opt, run_dir, images_freq=opt.update_html_freq))
    if opt.display_id > 0 and not is_installed("visdom"):
        log.warning("visdom is not installed, so training runs without it. pip install visdom, or add --display_id 0.")
    elif opt.display_id > 0:
        name, command = visdom_server(opt)
        hint = f"start it with {command}, or add --display_id 0 to silence this"
        connect = partial(create_sink, "visdom", opt, run_dir, images_freq=opt.display_freq)
        sinks.append(Background(name, connect, event_log, images_freq=opt.display_freq, hint=hint))
    if opt.use_tensorboard:
        sinks.append(create_sink("tensorboard", opt, run_dir, images_freq=opt.display_freq, after=at.images))
    if opt.use_wandb:
        sinks.append(create_wandb(opt, run_dir, images_freq=opt.display_freq, resumed=resumed))
    display = Display(event_log, sinks, at=at, losses_freq=opt.print_freq, attention=attention, formats=formats)
    display.start(opt.as_dict(), resumed=resumed)
    return display


def visdom_server(opt: Options) -> tuple[str, str]:
    """Return the name of the visdom server in messages, and the command that starts it."""
    return (
        f"visdom at {opt.display_server}:{opt.display_port}",
        f"`python -m visdom.server -port {opt.display_port}`",
    )


def create_sink(name: SinkName, opt: Options, run_dir: Path, *, images_freq: int = 0, after: int = 0) -> Sink:
    """Create a sink for the run in run_dir.

    Args:
        images_freq: images seen between two updates of images; 0 is never.
        after: images seen. TensorBoard hides what was logged after it.

    Raises:
        ConnectionError: the visdom server does not answer.
    """
    size = opt.display_winsize
    match name:
        case "log":
            return LossLogSink(run_dir / "loss_log.txt")
        case "html":
            from display.pages.training import PageSink  # its package is not needed with --no_html

            names = ("A", "B") if opt.direction == "AtoB" else ("B", "A")
            return PageSink(
                run_dir / "web", opt.name, names=names, size=size, images_freq=images_freq,
                command=resume_command(opt),
            )  # fmt: skip
        case "visdom":
            from display.sinks.visdom import Client, VisdomSink  # slow to import

            return VisdomSink(
                Client(opt.display_server, opt.display_port, opt.display_env), run_dir, opt.name,
                display_id=opt.display_id, columns=opt.display_ncols, size=size, images_freq=images_freq,
            )  # fmt: skip
        case "tensorboard":
            from display.sinks.tensorboard import TensorBoardSink  # optional, and slow to import

            return TensorBoardSink(run_dir, purge_step=after + 1, images_freq=images_freq)
        case "wandb":
            return create_wandb(opt, run_dir, images_freq=images_freq)


def create_wandb(opt: Options, folder: Path, *, images_freq: int = 0, resumed: bool = False) -> "WandbSink":
    """Create a sink for a new run at Weights & Biases; `resumed` appends to the last run of this `folder` instead.

    Raises:
        ValueError: it refuses, such as without an API key.
    """
    import wandb  # optional, and slow to import

    from display.sinks.wandb import WandbSink

    file = folder / "wandb_id.txt"
    run_id = file.read_text(encoding="ascii") if resumed and file.exists() else None
    config = opt.as_dict()
    try:
        sink = WandbSink(folder, opt.wandb_project_name, opt.name, config, run_id=run_id, images_freq=images_freq)
    except wandb.errors.UsageError as error:  # such as no API key
        raise ValueError(f"--use_wandb: {error} Or set WANDB_MODE=offline, or omit it.") from error
    file.write_text(sink.run.id, encoding="ascii")
    return sink
