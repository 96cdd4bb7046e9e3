"""Measure what attention is worth: python -m benchmarks.ablation. Trains a recipe with and without it, for some seeds.

CUT, without a cycle and attention, is a variant too.

A finished run is kept and an interrupted one is resumed, so the command can be repeated until all are done.
Figures are those of the test images at the end of each run.
"""

import argparse
import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from display.event_log import FILE, LogReader
from display.events import End
from options.parser import script_parser
from training.meter import figure
from util.command import run_command
from util.paths import ROOT

VARIANTS = {
    "none": ["--model", "cycle_gan"],
    "G": ["--attn_G", "bottleneck", "--attn_D", "none"],
    "D": ["--attn_G", "none", "--attn_D", "bottleneck"],
    "G and D": ["--attn_G", "bottleneck", "--attn_D", "bottleneck"],
    "G and D, in G at up1": ["--attn_G", "up1", "--attn_D", "bottleneck"],
    "CUT": ["--model", "cut"],
}
OF_CYCLES = r"--(lambda_A|lambda_B|lambda_identity|cycle_noise)[ =]\S+"  # flags of recipes that CUT does not have


@dataclass
class Row:
    """A variant: the figures of its seeds, in order."""

    variant: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: dict[str, float]) -> None:
        """Add the figures of one seed."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)


def main(argv: list[str] | None = None) -> int:
    """Train, and print a table. Returns the exit status."""
    args = parse(argv)
    rows = {variant: Row(variant) for variant in args.variants}
    runs = [(variant, seed) for seed in args.seeds for variant in args.variants]  # a machine may become slower
    for variant, seed in tqdm(runs, unit="run", disable=None):
        rows[variant].add(train(args, variant, seed))
    table = markdown(list(rows.values()))
    (args.folder / f"{args.recipe.stem}.md").write_text(table)
    print(table, end="")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m benchmarks.ablation", __doc__, "--seeds 0 1 --minutes 5")
    add = parser.add_argument
    add("--recipe", type=Path, default=ROOT / "recipes" / "demo.txt", help="file of flags (default: the demo)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of each variant for each (default: 0 1 2)")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    add("--minutes", type=float, default=5, help="of each run: a faster variant takes more steps (default: 5)")
    text = "train this many epochs instead, half of them at a constant learning rate: all variants take the same steps"
    add("--epochs", type=int, default=0, help=text)
    add("--metrics", default="kid,l1,ssim,content", help="see docs/metrics.md (default: kid,l1,ssim,content)")
    add("--folder", type=Path, default=Path("results/ablation"), help="of the runs and the table")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    args.recipe, args.folder = args.recipe.resolve(), args.folder.resolve()
    return args


def train(args: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Train and test a variant, unless it is done already. Returns its figures: name -> value.

    Raises:
        ValueError: a script ended with an error, and its output is above; or the run was begun with other flags.
    """
    name = f"{args.recipe.stem}_{variant.replace(', ', '_').replace(' ', '_')}_{seed}"
    log, state = args.folder / name / FILE, args.folder / name / "latest_state.pth"
    measured = args.folder / "results" / name / "test_latest" / "metrics.json"
    place = ["--name", name, "--checkpoints_dir", str(args.folder)]
    length = ["--train_minutes", f"{args.minutes}"]
    if args.epochs:
        decay = args.epochs // 2
        length = ["--train_minutes", "0", "--n_epochs", f"{args.epochs - decay}", "--n_epochs_decay", f"{decay}"]
    flags = [*recipe_flags(args.recipe, variant), *VARIANTS[variant], *length, "--seed", f"{seed}"]
    check_unchanged(args.folder / f"{name}.txt", shlex.join([*flags, "--metrics", args.metrics]))
    if not is_finished(log):
        measured.unlink(missing_ok=True)
        if state.is_file():
            flags = ["--continue_train"]
        elif log.parent.is_dir():
            shutil.rmtree(log.parent)  # it was killed before its first checkpoint
        run("train.py", *flags, *place, "--no_html", "--display_id", "0")
    if not measured.is_file():
        results = str(args.folder / "results")
        run("test.py", *place, "--preprocess", "none", "--results_dir", results, "--metrics", args.metrics)
    events = LogReader(log).read()
    end = [event for event in events if isinstance(event, End)][-1]
    seconds = statistics.median(event.step_seconds for event in events if event.step_seconds)
    figures = json.loads(measured.read_text())["figures"]
    known = {name: math.nan if value is None else value for name, value in figures.items()}
    return {"images": end.images, "ms": 1000 * seconds, **known}


def check_unchanged(path: Path, flags: str) -> None:
    """Keep the flags of a run in a file. ValueError if it holds others: finished runs are not trained again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(flags + "\n")
    elif (before := path.read_text().rstrip("\n")) != flags:
        raise ValueError(f"{path} has other flags: choose another --folder.\nThen: {before}\nNow:  {flags}")


def recipe_flags(recipe: Path, variant: str) -> list[str]:
    """The flags of a recipe that a variant has."""
    text = recipe.read_text()
    return shlex.split(re.sub(OF_CYCLES, "", text) if variant == "CUT" else text, comments=True)


def run(script: str, *flags: str) -> None:
    """Run a script in a process of its own. Raises ValueError if it fails; its errors are shown."""
    command = [sys.executable, script, *flags]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ValueError(f"{' '.join(command)} failed")


def is_finished(log: Path) -> bool:
    """Whether the run of a log reached its end."""
    ends = [event for event in LogReader(log).read() if isinstance(event, End)]
    return bool(ends) and ends[-1].reason == "finished"


def markdown(rows: list[Row]) -> str:
    """The table of all variants: means over the seeds, with standard deviations if there are several."""
    names = list(rows[0].figures)
    titles = {"images": "images", "ms": "ms an image"}
    lines = [["variant", *(titles.get(name) or figure(name).title for name in names)], ["---"] * (len(names) + 1)]
    for row in rows:
        cells = [row.variant]
        for name in names:
            pattern = {"images": "{:,.0f}", "ms": "{:.0f}"}.get(name) or figure(name).format
            values = row.figures[name]
            spread = f" ± {pattern.format(statistics.stdev(values))}" if len(values) > 1 else ""
            cells.append(pattern.format(statistics.mean(values)) + spread)
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
