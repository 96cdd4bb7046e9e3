"""The rows for one device, such as a GPU, measured in one process: python -m benchmarks --device cuda.

A process for each side, as for the rows of CPUs, would spend most of the time on starting. So all steps run here, one
case after the other, and each result is printed as soon as it is there. Times are medians of single steps after a
warm-up, each ended by a synchronization.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import CASES, Case
from benchmarks.rows import BF16, GB, Figure, ours
from data import cpu_count
from util.device import tuning

WARM_UP = 5  # steps, in which kernels are chosen and graphs are recorded
ENOUGH, LONG = 3, 8.0  # so many steps are enough, if they take so many seconds
WORKERS = 16  # of the loader, at most
COUNTED = ("plain_cycle_gan", "plain_sagan", "convolution")  # whose operations are counted

# To try out the code: arguments of the cases with which they take no time.
TINY: dict[str, dict[str, Any]] = {
    "plain_cycle_gan": {"size": 32, "blocks": 1, "batch": 1, "ngf": 8},
    "plain_sagan": {"batch": 1},
    "training": {"size": 32, "batch": 2, "compiled": False},
    "attention": {"positions": 64, "channels": 16, "times": 1},
    "convolution": {"channels": 16, "side": 8, "batch": 1},
    "loading": {"count": 2, "size": 32, "batch": 1, "workers": 0},
    "plain_testing": {"count": 2, "size": 32, "ngf": 8, "blocks": 1},
    "testing": {"count": 2, "size": 32, "network": ("--ngf", "8", "--ndf", "8", "--netG", "resnet_6blocks")},
}


@dataclass
class Timing:
    """A case that has been measured.

    Attributes:
        seconds: of each step.
        items: of a step.
        peak: memory that its tensors took on the device, in bytes; 0 on a CPU.
        flops: of a step of plain PyTorch; 0 of others.
        note: what there is to say.
    """

    seconds: list[float]
    items: int
    peak: int
    flops: float
    note: str

    @property
    def median(self) -> float:
        """Seconds for a step."""
        return statistics.median(self.seconds)

    @property
    def per_item(self) -> float:
        """Seconds for an item."""
        return self.median / self.items


class Bench:
    """Measures cases on one device, each once.

    Args:
        device: cpu or cuda.
        rounds: steps of each case.
        quick: take tiny cases, to try out the code.
    """

    def __init__(self, device: str, rounds: int, *, quick: bool = False):
        self.device, self.rounds, self.quick = torch.device(device), rounds, quick
        self.is_cuda = self.device.type == "cuda"
        self.timed = cache(self._timed)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def time(self, case: str, keywords: dict[str, Any]) -> Timing:
        """Measure a case of `benchmarks.cases`, or return what was measured before."""
        if self.quick:
            keywords = {**keywords, **TINY[case]}
            if "flags" in keywords and case == "training":
                flags = [flag for flag in keywords["flags"] if flag != GRAPHS]
                keywords["flags"] = (*flags, *small_networks(keywords["model"]))
        return self.timed(case, tuple(keywords.items()))

    def _timed(self, name: str, keywords: tuple[tuple[str, Any], ...]) -> Timing:
        self._clear()
        tuning(self.device).apply()  # cudnn.benchmark, as upstream sets it too
        return self._measure(CASES[name](**dict(keywords), device=self.device.type), counted=name in COUNTED)

    def _clear(self) -> None:
        """Forget what the case before has left."""
        torch.compiler.reset()
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _measure(self, case: Case, *, counted: bool) -> Timing:
        flops = 0.0
        if counted:
            with FlopCounterMode(display=False) as counter:
                case.step()
            flops = counter.get_total_flops()
        note = case.prepare()
        for _ in range(min(WARM_UP, self.rounds) if case.warm_up else 1):  # a step of the others is long
            case.step()
        self.wait()
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        while len(seconds) < self.rounds and (len(seconds) < ENOUGH or sum(seconds) < LONG):
            started = time.perf_counter()
            case.step()
            self.wait()
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() if self.is_cuda else 0
        return Timing(seconds, case.items, peak, flops, note)

    def peak_rate(self, precision: str) -> float:
        """The rate of one large convolution in FLOP/s."""
        timing = self.time("convolution", {"precision": precision, "channels": 512, "side": 128, "batch": 8})
        return timing.flops / min(timing.seconds)


Measure = Callable[[Bench], Figure]


@dataclass
class DeviceRow:
    """A line of the table for a device."""

    name: str
    aim: str
    measure: Measure


def faster(name: str, aim: float, baseline: tuple[str, dict], own: tuple[str, dict], peak: str = "") -> DeviceRow:
    """A row of how many times more items a second ours makes than the baseline."""

    def measure(bench: Bench) -> Figure:
        before, after = bench.time(*baseline), bench.time(*own)
        ratio = before.per_item / after.per_item
        details = f"{1000 * after.median:.1f} ms against {1000 * before.median:.1f} ms a step"
        data: dict[str, Any] = {"seconds": [before.seconds, after.seconds], "peak_bytes": [before.peak, after.peak]}
        if peak:
            # useful operations: those of the baseline for as many items
            data["share_of_peak"] = before.flops / before.items / after.per_item / bench.peak_rate(peak)
            details += f", {data['share_of_peak']:.0%} of the {peak} peak"
        details += f" ({after.note})" if after.note else ""
        return Figure(ratio, f"{ratio:.2f}x", ratio >= aim, details, data)

    return DeviceRow(name, f">= {aim}x", measure)


def slower(name: str, aim: float, baseline: tuple[str, dict], own: tuple[str, dict]) -> DeviceRow:
    """A row of how many times longer our step takes than the baseline's."""

    def measure(bench: Bench) -> Figure:
        before, after = bench.time(*baseline), bench.time(*own)
        ratio = after.per_item / before.per_item
        details = f"{1000 * after.median:.1f} ms against {1000 * before.median:.1f} ms a step"
        return Figure(ratio, f"{ratio:.3f}x", ratio <= aim, details, {"seconds": [before.seconds, after.seconds]})

    return DeviceRow(name, f"<= {aim}x the time", measure)


def smaller(name: str, aim: float, baseline: tuple[str, dict], own: tuple[str, dict]) -> DeviceRow:
    """A row of the memory of our tensors as a part of the baseline's, on GPUs."""

    def measure(bench: Bench) -> Figure:
        before, after = bench.time(*baseline), bench.time(*own)
        ratio = after.peak / before.peak if before.peak else float("nan")
        details = f"{after.peak / GB:.2f} of {before.peak / GB:.2f} GB"
        return Figure(ratio, f"{ratio:.3f}x", ratio <= aim, details, {"peak_bytes": [before.peak, after.peak]})

    return DeviceRow(name, f"<= {aim}x", measure)


def small_networks(model: str) -> tuple[str, ...]:
    """Flags of small networks."""
    if model == "sagan":
        return "--ngf", "8", "--ndf", "8"
    return "--ngf", "4", "--ndf", "4", "--netG", "resnet_6blocks"


def attention_memory(bench: Bench) -> Figure:
    """How the memory of attention grows with the number of positions, on GPUs."""
    sizes = (16384, 32768)
    peaks = [bench.time("attention", attending(True, "bf16")[1] | {"positions": size}).peak / GB for size in sizes]
    growth = peaks[1] / peaks[0] if peaks[0] else float("nan")
    details = ", ".join(f"N {size}: {peak:.2f} GB" for size, peak in zip(sizes, peaks, strict=True))
    return Figure(growth, f"{growth:.2f}x", growth <= 2.5, details, {"gb": peaks})


def waiting(bench: Bench) -> Figure:
    """Which part of its time training waits for images, with a worker for each core."""
    keywords = {"count": 200, "size": 286, "batch": 8, "workers": min(cpu_count(), WORKERS)}
    loading, training = bench.time("loading", keywords), bench.time(*pair(8, compiled=True))
    part = max(1 - training.per_item / (loading.per_item * 2), 0.0)  # a step takes an image of each domain
    details = f"a pair: {2000 * loading.per_item:.2f} ms to load, {1000 * training.per_item:.2f} ms to train on"
    return Figure(part, f"{part:.1%}", part <= 0.05, details)


def plain(model: str, **keywords: Any) -> tuple[str, dict]:
    """The plain step of a model: float32, with TF32 convolutions on a GPU."""
    return f"plain_{model}", keywords


def pair(batch: int, *flags: str, compiled: bool = False, model: str = "cycle_gan") -> tuple[str, dict]:
    """A step of train.py at 256 px."""
    return ours(model, 256, *BF16, *flags, batch=batch, compiled=compiled)


def attending(ours: bool, precision: str) -> tuple[str, dict]:
    """Attention alone."""
    return "attention", {"positions": 16384, "channels": 256, "ours": ours, "precision": precision}


PLAIN_8 = plain("cycle_gan", size=256, blocks=9, batch=8)
PLAIN_1 = plain("cycle_gan", size=256, blocks=9, batch=1)
SAGAN = ours("sagan", 64, *BF16, batch=256, compiled=True)
GRAPHS = "--cuda_graphs"

# Most important first: the time may be limited.
DEVICE_ROWS = [
    faster("cycle_gan 256 px, batch 8, bf16, eager", 1.8, PLAIN_8, pair(8), "bf16"),
    smaller("peak memory, cycle_gan 256 px, batch 8, bf16", 0.5, PLAIN_8, pair(8)),
    faster("attention alone, N 16384, C 256, bf16", 5.0, attending(False, "bf16"), attending(True, "bf16")),
    DeviceRow("attention alone, bf16: memory for twice the positions", "<= 2.5x", attention_memory),
    slower("cycle_gan_attn over cycle_gan, batch 8, bf16, eager", 1.05, pair(8), pair(8, model="cycle_gan_attn")),
    faster("cycle_gan 256 px, batch 8, bf16, --compile", 3.0, PLAIN_8, pair(8, compiled=True), "bf16"),
    smaller("peak memory, the same with --compile", 0.5, PLAIN_8, pair(8, compiled=True)),
    DeviceRow("training with --compile waits for images, 286 px JPEGs, batch 8", "<= 5% of the time", waiting),
    faster(
        "cycle_gan 256 px, batch 1, bf16, --compile --cuda_graphs",
        1.5, PLAIN_1, pair(1, GRAPHS, compiled=True), "bf16",
    ),
    faster("sagan 64 px, batch 256, bf16, --compile", 3.0, plain("sagan", batch=256), SAGAN, "bf16"),
    faster(
        "test.py 256 px, batch 16, bf16, with its page",
        4.0, ("plain_testing", {"count": 200}),
        ("testing", {"count": 200, "flags": ("--model", "test", *BF16, "--batch_size", "16")}),
    ),
    faster("cycle_gan 256 px, batch 1, bf16, eager", 1.0, PLAIN_1, pair(1), "bf16"),
    slower("channels last without --compile", 1.0, pair(8), ("training", pair(8)[1] | {"channels_last": True})),
    faster("cycle_gan 256 px, batch 8, fp32", 1.0, PLAIN_8, ours("cycle_gan", 256, batch=8)),
    faster("attention alone, N 16384, C 256, fp32", 1.0, attending(False, "fp32"), attending(True, "fp32")),
    faster("cycle_gan 256 px, batch 1, bf16, --compile", 1.5, PLAIN_1, pair(1, compiled=True), "bf16"),
    slower(
        "cycle_gan_attn over cycle_gan, batch 8, bf16, --compile",
        1.05, pair(8, compiled=True), pair(8, model="cycle_gan_attn", compiled=True),
    ),
]  # fmt: skip


def measure_all(
    bench: Bench, rows: Sequence[DeviceRow], *, minutes: float, report: Callable[[DeviceRow, Figure], None]
) -> list[str]:
    """Measure rows until the time is over.

    A row that fails, such as for lack of memory, does not keep the others from being measured.

    Args:
        report: is given each row that has been measured.

    Returns:
        The rows that failed or were not reached, as lines for the user.
    """
    ends = time.monotonic() + 60 * minutes
    failures: list[str] = []
    for number, row in enumerate(rows):
        if time.monotonic() > ends:
            names = "; ".join(left.name for left in itertools.islice(rows, number, None))
            return [*failures, f"not reached in {minutes:g} minutes: {names}"]
        try:
            report(row, row.measure(bench))
        except Exception as error:  # lack of memory, and compilers fail in many ways
            lines = str(error).strip().splitlines() or [type(error).__name__]
            failures.append(f"{row.name} failed: {lines[0]}")
    return failures
