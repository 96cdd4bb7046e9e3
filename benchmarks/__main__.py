"""Measure speed and memory against plain PyTorch: python -m benchmarks. Writes results.json and results.md.

Both sides of a row run in processes of their own, taking steps in turn, so that a machine that is slow for a while is
slow for both. A row's ratio is the median of the ratios of its rounds.
"""

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from benchmarks.rows import ROWS, Figure, Peak
from data import cpu_count


@dataclass
class Result:
    """A row that has been measured."""

    name: str
    aim: str
    figure: Figure

    def cells(self) -> list[str]:
        """Of the table: name, aim, reached, and what stands behind it."""
        return [self.name, self.aim, self.figure.text, "yes" if self.figure.reached else "no", self.figure.details]


def main() -> int:
    """Measure the rows that are asked for and write the table. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side; a row takes some minutes at 256 px")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only the rows whose name holds one of these")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder of results.json and results.md"
    )
    args = parser.parse_args()
    rows = [row for row in ROWS if not args.only or any(text in row.name for text in args.only)]
    if not rows:
        parser.error(f"--only {' '.join(args.only)}: the rows are {', '.join(row.name for row in ROWS)}")
    peaks = {precision: Peak(precision, args.rounds) for precision in ("fp32", "bf16")}
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for row in tqdm(rows, unit="row", disable=None):
        results.append(Result(row.name, row.aim, row.measure(args.rounds, peaks)))
        tqdm.write(" | ".join(results[-1].cells()))
        write(args.out, results, {name: peak.rate for name, peak in peaks.items() if peak.measured})
    print(f"written to {args.out / 'results.md'} and results.json")
    return 0


def write(folder: Path, results: list[Result], peaks: dict[str, float]) -> None:
    """results.json and results.md; `peaks` are in FLOP/s."""
    report = {
        "machine": machine(),
        "peaks": peaks,
        "rows": [{"name": result.name, "aim": result.aim, **vars(result.figure)} for result in results],
    }
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "results.md").write_text(table(results, report))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def table(results: list[Result], report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["| case | aim | measured | reached | behind it |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(result.cells()) + " |" for result in results]
    facts = [f"{name}: {value}" for name, value in report["machine"].items()]
    facts += [f"best {name} convolution: {rate / 1e9:.0f} GFLOP/s" for name, rate in report["peaks"].items()]
    return "\n".join([*lines, "", "; ".join(facts) + ".", ""])


if __name__ == "__main__":
    sys.exit(main())
