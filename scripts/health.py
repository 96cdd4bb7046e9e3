"""Print what the health checks found in a run: what, since when, and flags to try.

The checks and their thresholds are in docs/health.md.
"""

import argparse
import sys
from pathlib import Path

from display.event_log import FILE
from display.events import Health
from display.history import Episode, History
from options.parser import script_parser
from util.command import run_command


def main(argv: list[str] | None = None) -> int:
    """Print the findings of a finished or running run, from its log. Returns the exit status."""
    args = parse(argv)
    log = Path(args.checkpoints_dir) / args.name / FILE
    if not log.exists():
        raise ValueError(f"{log.parent} has no {FILE}. Check --name and --checkpoints_dir.")
    history = History(log)
    history.read()
    print("\n".join(map(report, history.findings)) or "no findings")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.health", __doc__, "--name maps")
    parser.add_argument("--name", default="experiment_name", help="name of the run")
    parser.add_argument("--checkpoints_dir", default="./checkpoints", help="folder of the runs")
    return parser.parse_args(argv)


def report(finding: Episode) -> str:
    """A finding as text."""
    until = f", over since {moment(finding.end)}" if finding.end else ""
    event = finding.begin
    return f"{event.check}, since {moment(event)}{until}\n  {event.sentence} {event.advice}".rstrip()


def moment(event: Health) -> str:
    """When an event was."""
    return f"epoch {event.epoch}, image {event.images:,}"


if __name__ == "__main__":
    sys.exit(run_command(main))
