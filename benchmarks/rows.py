"""The rows of the table: what is compared with what, and the aim."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from options.train_options import TrainOptions
from util.paths import ROOT

GB = 1e9


@dataclass
class Figure:
    """What came of a row."""

    value: float
    text: str
    reached: bool
    details: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """A line of the table."""

    name: str
    aim: str
    measure: Callable[[int, Mapping[str, "Peak"]], Figure]


class Worker:
    """A process that takes a step of a case whenever it is told to."""

    def __init__(self, case: str, *, operations: bool = False, **keywords: Any):
        command = [sys.executable, "-m", "benchmarks.worker", case, json.dumps(keywords), *["operations"] * operations]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.answer()
        self.seconds: list[float] = []
        self.peak = 0.0

    def answer(self) -> dict[str, Any]:
        """The next line that the process prints."""
        assert self.process.stdout
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        self.close()
        raise RuntimeError("a worker ended; its error is above")

    def step(self) -> None:
        """Take a step."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        answer = self.answer()
        self.seconds.append(answer["seconds"])
        self.peak = answer["peak"]

    @property
    def per_item(self) -> list[float]:
        """Seconds for an item, of all steps so far."""
        return [seconds / self.ready["items"] for seconds in self.seconds]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@dataclass
class Peak:
    """The best rate of a single large convolution, in FLOP/s; measured when it is first asked for."""

    precision: str
    rounds: int

    @property
    def measured(self) -> bool:
        """Whether it has been asked for."""
        return "rate" in self.__dict__

    @cached_property
    def rate(self) -> float:
        """FLOP/s."""
        worker = Worker("convolution", operations=True, precision=self.precision)
        for _ in range(10 * self.rounds):
            worker.step()
        worker.close()
        return worker.ready["flops"] / min(worker.seconds)


def interleaved(first: Worker, second: Worker, rounds: int) -> list[float]:
    """Both take `rounds` steps in turn: how many times faster the second was, round by round."""
    for _ in range(rounds):
        first.step()
        second.step()
    first.close()
    second.close()
    return [a / b for a, b in zip(first.per_item, second.per_item, strict=True)]


def speed(name: str, aim: float, baseline: tuple[str, dict], ours: tuple[str, dict], precision: str = "") -> Row:
    """A row of how many times more items a second ours makes than the baseline."""

    def measure(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
        workers = [Worker(case, operations=bool(precision), **keywords) for case, keywords in (baseline, ours)]
        ratios = interleaved(workers[0], workers[1], rounds)
        ratio = statistics.median(ratios)
        medians = [statistics.median(worker.seconds) for worker in workers]
        details = f"{medians[1]:.3g} s against {medians[0]:.3g} s a step, ratios {min(ratios):.2f} to {max(ratios):.2f}"
        data: dict[str, Any] = {"seconds": medians, "ratios": ratios, "peak_bytes": [w.peak for w in workers]}
        if precision:
            rate = workers[1].ready["flops"] / medians[1]
            data["fraction_of_peak"] = rate / peaks[precision].rate
            details += f", {data['fraction_of_peak']:.0%} of the convolution peak"
        return Figure(ratio, f"{ratio:.2f}x", ratio >= aim, details, data)

    return Row(name, f">= {aim}x", measure)


def overhead(name: str, aim: float, baseline: tuple[str, dict], ours: tuple[str, dict]) -> Row:
    """A row of how many times longer our step takes than the baseline's."""

    def measure(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
        workers = [Worker(case, **keywords) for case, keywords in (baseline, ours)]
        ratios = [1 / ratio for ratio in interleaved(workers[0], workers[1], rounds)]
        ratio = statistics.median(ratios)
        details = " against ".join(f"{statistics.median(worker.seconds):.3g} s" for worker in reversed(workers))
        details += f", ratios {min(ratios):.2f} to {max(ratios):.2f}"
        return Figure(ratio, f"{ratio:.3f}x", ratio <= aim, details, {"ratios": ratios})

    return Row(name, f"<= {aim}x the time", measure)


def metrics(name: str, aim: float, size: int, *flags: str) -> Row:
    """A row of how much of a run's time --metrics kid takes at its default frequency and number of images."""

    def measure(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
        keywords: dict[str, Any] = {"model": "cycle_gan", "size": size, "flags": flags}
        training, measuring = Worker("training", **keywords), Worker("measuring", **keywords)
        opt = TrainOptions().parse([])
        parts = [opt.metrics_images / opt.metrics_freq / ratio for ratio in interleaved(training, measuring, rounds)]
        part = statistics.median(parts)
        seconds = [statistics.median(worker.per_item) for worker in (measuring, training)]
        details = f"{seconds[0]:.3g} s for an image, {opt.metrics_images} images every {opt.metrics_freq}, "
        details += f"{seconds[1]:.3g} s a step"
        return Figure(part, f"{part:.2%}", part <= aim, details, {"parts": parts})

    return Row(name, f"<= {aim:.0%} of the time", measure)


def memory(name: str, aim: float, baseline: tuple[str, dict], ours: tuple[str, dict]) -> Row:
    """A row of the peak memory of our process as a part of the baseline's."""

    def measure(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
        workers = [Worker(case, **keywords) for case, keywords in (baseline, ours)]
        interleaved(workers[0], workers[1], 1)
        before, after = (worker.peak / GB for worker in workers)
        return Figure(
            after / before, f"{after / before:.3f}x", after / before <= aim, f"{after:.2f} of {before:.2f} GB"
        )

    return Row(name, f"<= {aim}x", measure)


def attention_memory(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
    """What attention alone adds to the memory of its process, by the number of positions."""
    extra = {}
    for positions in (1024, 4096, 16384, 65536):
        worker = Worker("attention", positions=positions, channels=256, ours=True)
        worker.close()
        extra[positions] = (worker.ready["peak"] - worker.ready["peak_before"]) / GB
    reached = extra[16384] <= 1.5 and extra[65536] <= 4 * max(extra[16384], extra[4096] * 4)
    details = ", ".join(f"N {positions}: {size:.2f} GB" for positions, size in extra.items())
    return Figure(extra[16384], f"{extra[16384]:.2f} GB", reached, details, {"extra_gb": extra})


def large_image(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
    """What test.py takes for an image of 1024 px, its attention on the page."""
    worker = Worker("testing", count=1, size=1024, model="cycle_gan_attn")
    worker.close()
    size, seconds = worker.ready["peak"] / GB, worker.ready["start_seconds"]
    return Figure(size, f"{size:.2f} GB", size <= 6, f"{seconds:.0f} s: A to B and back, B to A and back, the page")


def help_time(rounds: int, peaks: Mapping[str, Peak]) -> Figure:
    """How long train.py --help takes, as a multiple of importing torch."""
    ratios = []
    for _ in range(rounds):
        seconds = []
        for arguments in (["-c", "import torch"], ["train.py", "--help"]):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[1] / seconds[0])
    ratio = statistics.median(ratios)
    details = f"ratios {min(ratios):.2f} to {max(ratios):.2f}"
    return Figure(ratio, f"{ratio:.2f}x", ratio <= 1.3, details, {"ratios": ratios})


def plain(size: int, blocks: int) -> tuple[str, dict]:
    """The plain step of CycleGAN."""
    return "plain_cycle_gan", {"size": size, "blocks": blocks}


def ours(model: str, size: int, *flags: str, batch: int = 1, compiled: bool = False) -> tuple[str, dict]:
    """A step of train.py."""
    return "training", {"model": model, "size": size, "batch": batch, "flags": flags, "compiled": compiled}


BF16 = ("--precision", "bf16")
SMALL = ("--netG", "resnet_6blocks")
BLUR = ("--resample", "blur")

ROWS = [
    speed(
        "cycle_gan 256 px, bf16, --compile", 2.1, plain(256, 9), ours("cycle_gan", 256, *BF16, compiled=True), "bf16"
    ),
    speed("cycle_gan 256 px, fp32", 1.05, plain(256, 9), ours("cycle_gan", 256), "fp32"),
    speed("cycle_gan 64 px, 6 blocks, bf16", 2.0, plain(64, 6), ours("cycle_gan", 64, *SMALL, *BF16), "bf16"),
    speed(
        "sagan 64 px, batch 64, bf16, --compile",
        3.0,
        ("plain_sagan", {"batch": 64}),
        ours("sagan", 64, *BF16, batch=64, compiled=True),
        "bf16",
    ),
    speed("sagan 64 px, batch 64, fp32", 1.5, ("plain_sagan", {"batch": 64}), ours("sagan", 64, batch=64), "fp32"),
    overhead("cycle_gan_attn over cycle_gan, 256 px, fp32", 1.08, ours("cycle_gan", 256), ours("cycle_gan_attn", 256)),
    *(
        row(
            f"{what}{model} over cycle_gan, 256 px, bf16",
            0.6,
            ours("cycle_gan", 256, *BLUR, *BF16),
            ours(model, 256, *BF16),
        )
        for model in ("cut", "fastcut")
        for what, row in (("", overhead), ("peak memory, ", memory))
    ),
    metrics("--metrics kid, cycle_gan 256 px, fp32", 0.03, 256),
    metrics("--metrics kid, cycle_gan 64 px, 6 blocks, bf16", 0.03, 64, *SMALL, *BF16),
    memory("peak memory, cycle_gan 256 px, bf16", 0.55, plain(256, 9), ours("cycle_gan", 256, *BF16)),
    memory(
        "peak memory, cycle_gan 256 px, bf16, --checkpoint_blocks",
        0.55,
        plain(256, 9),
        ours("cycle_gan", 256, *BF16, "--checkpoint_blocks"),
    ),
    memory(
        "peak memory, cycle_gan 256 px, fp32, --checkpoint_blocks",
        0.55,
        plain(256, 9),
        ours("cycle_gan", 256, "--checkpoint_blocks"),
    ),
    Row("attention alone, N 16384, C 256, fp32: extra memory", "<= 1.5 GB", attention_memory),
    *(
        speed(
            f"attention alone, N {positions}, C 256, fp32",
            1.0,
            ("attention", {"positions": positions, "channels": 256, "ours": False}),
            ("attention", {"positions": positions, "channels": 256, "ours": True}),
        )
        for positions in (1024, 4096)
    ),
    speed("loading: 600 px JPEG, resize 286, crop 256, flip, one worker", 2.5, ("plain_loading", {}), ("loading", {})),
    speed(
        "test.py, 200 images of 256 px, bf16",
        2.5,
        ("plain_testing", {"count": 200}),
        ("testing", {"count": 200, "flags": ("--model", "test", *BF16)}),
    ),
    Row("test.py, 1024 px with attention: peak memory", "<= 6 GB", large_image),
    Row("train.py --help over import torch", "<= 1.3x the time", help_time),
]
