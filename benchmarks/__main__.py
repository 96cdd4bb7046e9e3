"""Measure speed and memory against plain PyTorch: python -m benchmarks. Writes results.json and results.md.

Both sides of a row run in processes of their own, taking steps in turn, so that a machine that is slow for a while is
slow for both. A row's ratio is the median of the ratios of its rounds.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from benchmarks.gpu import DEVICE_ROWS, Bench, DeviceRow, measure_all
from benchmarks.rows import ROWS, Figure, Peak, Row
from data import cpu_count
from options.parser import script_parser


@dataclass
class Result:
    """A row that has been measured."""

    name: str
    aim: str
    figure: Figure

    def cells(self) -> list[str]:
        """Of the table: name, aim, reached, and details."""
        return [self.name, self.aim, self.figure.text, "yes" if self.figure.reached else "no", self.figure.details]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows that are asked for and write the table. Returns the exit status."""
    args = parse(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("skipped: PyTorch finds no NVIDIA GPU on this machine")
        return 0
    if args.device:
        return measure_device(args)
    peaks = {precision: Peak(precision, args.rounds) for precision in ("fp32", "bf16")}
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for row in tqdm(args.rows, unit="row", disable=None):
        results.append(Result(row.name, row.aim, row.measure(args.rounds, peaks)))
        tqdm.write(" | ".join(results[-1].cells()))
        write(args.out, results, {name: peak.rate for name, peak in peaks.items() if peak.measured})
    print(f"written to {args.out / 'results.md'} and results.json")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the chosen `rows`."""
    parser = script_parser("python -m benchmarks", __doc__, "--only attention --rounds 3", "--device cuda --minutes 5")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each side; a row takes some minutes at 256 px")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only the rows whose name holds one of these")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="folder of results.json and results.md"
    )
    text = "measure the rows for this device, such as cuda, in one process; default: the rows for CPUs"
    parser.add_argument("--device", choices=("cpu", "cuda"), help=text)
    parser.add_argument("--quick", action="store_true", help="with --device: tiny cases, to try out the code")
    text = "with --device: start no further row after so many minutes"
    parser.add_argument("--minutes", type=float, default=math.inf, help=text)
    args = parser.parse_args(argv)
    if not args.device and (args.quick or args.minutes != math.inf):
        parser.error("--quick and --minutes are for the rows of --device")
    rows: Sequence[Row | DeviceRow] = DEVICE_ROWS if args.device else ROWS
    args.rows = [row for row in rows if not args.only or any(text in row.name for text in args.only)]
    if not args.rows:
        parser.error(f"--only {' '.join(args.only)}: the rows are {', '.join(row.name for row in rows)}")
    return args


def measure_device(args: argparse.Namespace) -> int:
    """Measure the rows of a device and write the table. Returns the exit status: 1 if a row failed."""
    args.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    bench = Bench(args.device, 1 if args.quick else args.rounds, quick=args.quick)
    rates: dict[str, float] = {}

    def report(row: DeviceRow, figure: Figure) -> None:
        results.append(Result(row.name, row.aim, figure))
        print(" | ".join(results[-1].cells()), flush=True)
        rates.setdefault("bf16", bench.peak_rate("bf16"))
        write(args.out, results, rates)

    failures = measure_all(bench, args.rows, minutes=args.minutes, report=report)
    for failure in failures:
        print(failure, flush=True)
    print(f"written to {args.out / 'results.md'} and results.json")
    return 1 if any("failed" in failure for failure in failures) else 0


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
    lines = info.read_text().splitlines() if info.exists() else []  # on Linux alone
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": cpu_count(),
        **({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def table(results: list[Result], report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["| case | aim | measured | reached | details |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(result.cells()) + " |" for result in results]
    facts = [f"{name}: {value}" for name, value in report["machine"].items()]
    facts += [f"best {name} convolution: {rate / 1e9:.0f} GFLOP/s" for name, rate in report["peaks"].items()]
    return "\n".join([*lines, "", "; ".join(facts) + ".", ""])


if __name__ == "__main__":
    sys.exit(main())
