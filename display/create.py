"""Shows a run while it trains: every value and picture goes to the log of the run, and from there to the sinks."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from display.background import Background
from display.display import Attention, Display, NoDisplay
from display.event_log import EventLog
from display.events import Progress
from display.pages.training import PageSink
from display.sink import Sink
from display.sinks.console import ConsoleSink
from display.sinks.loss_log import LossLogSink
from options.base_options import Options
from training.resume import resume_command

if TYPE_CHECKING:
    from display.sinks.wandb import WandbSink

__all__ = ["Display", "NoDisplay", "Progress", "Sink", "SinkName", "create_display", "create_sink", "create_wandb"]

SinkName = Literal["log", "html", "visdom", "tensorboard", "wandb"]


def create_display(
    opt: Options, run_dir: Path, at: Progress, attention: Attention = lambda images: [], *, resumed: bool = False
) -> Display:
    """The display that the flags ask for, of a run that writes into run_dir, CKPT/NAME, and starts at `at`.

    A run that is `resumed` adds to what was shown of it before that point, be it the very start; another one under
    the same name begins with nothing.
    """
    log = EventLog(run_dir)
    sinks = [ConsoleSink(), create_sink("log", opt, run_dir)]
    if not opt.no_html:
        sinks.append(create_sink("html", opt, run_dir, images_freq=opt.update_html_freq))
    if opt.display_id > 0:
        name, command = visdom_server(opt)
        hint = f"start it with {command}, or --display_id 0 to silence this"
        connect = partial(create_sink, "visdom", opt, run_dir, images_freq=opt.display_freq)
        sinks.append(Background(name, connect, log, images_freq=opt.display_freq, hint=hint))
    if opt.use_tensorboard:
        sinks.append(create_sink("tensorboard", opt, run_dir, images_freq=opt.display_freq, after=at.images))
    if opt.use_wandb:
        sinks.append(create_wandb(opt, run_dir, images_freq=opt.display_freq, resumed=resumed))
    display = Display(log, sinks, at=at, losses_freq=opt.print_freq, attention=attention)
    display.start(opt.as_dict(), resumed=resumed)
    return display


def visdom_server(opt: Options) -> tuple[str, str]:
    """What messages call the server that the flags name, and the command that starts it."""
    return (
        f"visdom at {opt.display_server}:{opt.display_port}",
        f"`python -m visdom.server -port {opt.display_port}`",
    )


def create_sink(name: SinkName, opt: Options, run_dir: Path, *, images_freq: int = 0, after: int = 0) -> Sink:
    """A sink for the run in run_dir, that wants pictures every `images_freq` images.

    Args:
        after: images that TensorBoard keeps what was written of; it no longer shows what came later.

    Raises:
        ValueError: it needs a package that is not installed.
        ConnectionError: the visdom server does not answer.
    """
    size = opt.display_winsize
    match name:
        case "log":
            return LossLogSink(run_dir / "loss_log.txt")
        case "html":
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
            try:
                from display.sinks.tensorboard import TensorBoardSink
            except ImportError as error:
                raise ValueError(f"--use_tensorboard: {error}; pip install tensorboard") from error
            return TensorBoardSink(run_dir, purge_step=after + 1, images_freq=images_freq)
        case "wandb":
            return create_wandb(opt, run_dir, images_freq=images_freq)


def create_wandb(opt: Options, folder: Path, *, images_freq: int = 0, resumed: bool = False) -> "WandbSink":
    """A sink for a new run at Weights & Biases, or for the last one of this `folder` if that is `resumed`.

    Raises:
        ValueError: wandb is not installed.
    """
    try:
        from display.sinks.wandb import WandbSink
    except ImportError as error:
        raise ValueError(f"--use_wandb: {error}; pip install wandb") from error
    file = folder / "wandb_id.txt"
    run_id = file.read_text(encoding="ascii") if resumed and file.exists() else None
    config = opt.as_dict()
    sink = WandbSink(folder, opt.wandb_project_name, opt.name, config, run_id=run_id, images_freq=images_freq)
    file.write_text(sink.run.id, encoding="ascii")
    return sink
