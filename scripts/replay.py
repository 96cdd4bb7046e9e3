"""Show a run again from its log: python -m scripts.replay --name maps --to visdom."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from display.create import SinkName, create_sink, require_package, visdom_server
from display.event_log import FILE, LogReader
from display.events import Event, Images
from options.base_options import read_saved
from options.parser import script_parser
from options.train_options import TrainOptions
from util.command import run_command

PACKAGES = ("visdom", "tensorboard", "wandb")  # sinks that need the package of their name


def main(argv: list[str] | None = None) -> int:
    """Show the whole log of a run in one sink, in place of what it holds. Returns the exit status."""
    to, flags = parse(argv)
    if to in PACKAGES:
        require_package(to, f"--to {to}")
    peeked = TrainOptions().peek(flags)
    run_dir = Path(peeked["checkpoints_dir"]) / peeked["name"]
    opt = TrainOptions().parse(flags, read_saved(run_dir))
    events = LogReader(run_dir / FILE).read()
    if not events:
        raise ValueError(f"{run_dir} has no {FILE}. Check --name and --checkpoints_dir.")
    if to == "log" and (run_dir / "loss_log.txt").exists():
        (run_dir / "loss_log.txt").replace(run_dir / "loss_log.old.txt")
    try:
        sink = create_sink(to, opt, run_dir, images_freq=1)
        sink.show(without_replaced_images(events, run_dir))
    except ConnectionError as error:
        if to != "visdom":
            raise
        name, command = visdom_server(opt)
        raise ConnectionError(f"{name} does not answer. Start it with {command}.") from error
    sink.close()
    print(f"{opt.name}: {len(events)} events shown in {to}")
    return 0


def parse(argv: list[str] | None) -> tuple[SinkName, list[str]]:
    """Where to show the run, and the flags of train.py."""
    text = "Takes the flags of train.py too, such as --display_port."
    parser = script_parser("python -m scripts.replay", f"{__doc__}\n{text}", "--name maps --to visdom")
    parser.usage = "%(prog)s --name NAME [--checkpoints_dir DIR] --to SINK [--FLAG VALUE ...]"
    parser.add_argument("--to", required=True, choices=get_args(SinkName), help="where to show it; log is loss_log.txt")
    args, flags = parser.parse_known_args(argv)
    return args.to, flags


def without_replaced_images(events: Sequence[Event], run_dir: Path) -> list[Event]:
    """Drop the events whose images are gone: those of the end of an epoch replace the earlier ones."""
    kept: list[Event] = []
    later: set[str] = set()
    for event in reversed(events):
        if isinstance(event, Images):
            files = set(event.files.values())
            if files <= later or not all((run_dir / file).is_file() for file in files):
                continue
            later |= files
        kept.append(event)
    return kept[::-1]


if __name__ == "__main__":
    sys.exit(run_command(main))
