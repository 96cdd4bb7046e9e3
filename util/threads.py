"""The number of CPU threads, chosen by timing training steps throughout a run.

The threads of a step wait for each other hundreds of times. When another process occupies the core of one thread, all
threads wait, so two threads can be several times slower than one on a busy machine.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from util import distributed

log = logging.getLogger(__name__)

WARMUP = 1  # untimed steps after a change: oneDNN creates its kernels again for another number of threads
TIMED = 3  # timed steps for each number of threads
WINDOW = 8  # steps whose median is the step time between two searches
SLOWER = 1.5  # a step time of so many times the known one starts a search, or ends the trial of a number of threads
# The same for untimed steps, and for two steps in a row. Beside three busy processes, a step with two threads can take
# a hundred times as long, and it cannot be interrupted.
HOPELESS = 3.0
FREE = 0.9  # share of the time in which this thread has a core; below it, others wait for cores too
# The next search starts after so many times the duration of the last one, since the step time of one thread does not
# show when a machine becomes quiet again. It doubles after each search that changes nothing.
PATIENCE = 20.0
SAVED = ("threads", "best", "started", "step_time", "times", "shares", "direction", "searched", "settled", "patience")


class ThreadChooser:
    """Chooses the number of CPU threads by timing training steps.

    The first search starts at `start` and moves up, or else down, as long as that is faster. The fastest number stays
    until steps take `SLOWER` times as long, which starts a search downward, or until `PATIENCE` runs out, which starts
    one upward and then downward. No search goes upward while this thread has to wait for a core.

    Losses and weights depend on the number of threads in their last bits. Only the state and the measured times decide
    it, so a resumed run is bit-identical to an uninterrupted run with the same measured times.

    Args:
        candidates: numbers of threads to choose from, ascending. With one candidate nothing is measured. With none
            nothing is measured, set or saved.
        start: the first candidate to try; None takes the last one, which torch uses already.
        clock: returns seconds.
        cpu_clock: returns the CPU time of this thread in seconds.
        set_threads: sets the number of threads of the following steps.
        report: receives a message for the user.

    Attributes:
        threads: the number of threads of the next step.
    """

    def __init__(
        self,
        candidates: Sequence[int],
        *,
        start: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        report: Callable[[str], None] = log.info,
    ):
        self.candidates = list(candidates)
        self.clock, self.cpu_clock, self.set_threads, self.report = clock, cpu_clock, set_threads, report
        most = max(candidates, default=0)
        self.threads = self.best = self.started = most if start is None else start
        if self.threads != most:
            set_threads(self.threads)
        self.step_time: float | None = None  # with `best` threads, in seconds for each element of a batch
        self.times: list[float] = []  # of the steps since the last change
        self.shares: list[float] = []  # of these times, in which this thread had a core
        self.direction = -1 if self.threads == most else 1  # of a search through the candidates; 0 between searches
        self.searched = 0.0  # seconds that the last search took
        self.settled = 0.0  # seconds of steps since then
        self.patience = PATIENCE

    @contextmanager
    def timed(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Time the step on `batch` inside, and choose the number of threads for the next one.

        Batches of other sizes are compared by the number of elements of their tensors.
        """
        since, computed = self.clock(), self.cpu_clock()
        yield
        if len(self.candidates) > 1:
            size = sum(value.numel() for value in batch.values() if isinstance(value, Tensor))
            self._record(self.clock() - since, self.cpu_clock() - computed, size)

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which a resumed run continues as this one would."""
        if not self.candidates:
            return {}
        return {name: getattr(self, name) for name in SAVED} | {"times": list(self.times), "shares": list(self.shares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        A single candidate, which the user may have chosen, overrides the saved number. So does the largest candidate
        if the saved number is larger, which comes from another machine.
        """
        if not self.candidates or not state:
            return
        saved = state["threads"]
        if len(self.candidates) == 1 or saved > max(self.candidates):
            if saved != self.threads:
                self.report(
                    f"saved with {counted(saved)}, resumed with {self.threads}: not bit-identical to the run so far"
                )
            return
        for name in SAVED:
            setattr(self, name, state[name])
        self.times, self.shares = list(self.times), list(self.shares)
        self.candidates = sorted({*self.candidates, self.threads, self.best, self.started})
        self.set_threads(self.threads)

    def _record(self, seconds: float, computed: float, size: int) -> None:
        self.times.append(seconds / size)
        self.shares.append(computed / seconds)
        if self.direction:
            self.searched += seconds
            self._search()
        else:
            self.settled += seconds
            self._watch()

    def _watch(self) -> None:
        """Start a search if steps have become slower and fewer threads may help, or if PATIENCE has run out."""
        del self.times[:-WINDOW], self.shares[:-WINDOW]
        assert self.step_time is not None, "a search has come before"
        fewer = self.best > self.candidates[0]
        last_two = min(self.times[-2:])
        if fewer and len(self.times) > 1 and last_two > HOPELESS * self.step_time:
            self._start_search(-1, last_two)
        elif len(self.times) == WINDOW:
            now = statistics.median(self.times)
            if fewer and now > SLOWER * self.step_time:
                self._start_search(-1, now)
            elif self.settled > self.patience * self.searched and (fewer or self._may_use_more()):
                self._start_search(1, now)
            else:
                self.step_time = min(self.step_time, now)

    def _start_search(self, direction: int, step_time: float) -> None:
        self.started, self.step_time, self.searched, self.direction = self.best, step_time, 0.0, direction
        self._try_next()

    def _search(self) -> None:
        """Compare the number of threads on trial with the best one, once it has been timed."""
        timed = self.times[WARMUP:]
        if self.step_time is not None and self.times[-1] > (SLOWER if timed else HOPELESS) * self.step_time:
            self._turn()
        elif len(timed) == TIMED:
            now = statistics.median(timed)
            if self.step_time is None or now < self.step_time:
                self.best, self.step_time = self.threads, now
                self._try_next()
            else:
                self._turn()

    def _try_next(self) -> None:
        """Try the next candidate after the best one."""
        if self._may_use_more() if self.direction > 0 else self.best > self.candidates[0]:
            self._use(self.candidates[self.candidates.index(self.best) + self.direction])
        else:
            self._turn()

    def _may_use_more(self) -> bool:
        """Whether there are candidates above the best one, which the last steps used, and idle cores for them."""
        return self.best < self.candidates[-1] and statistics.median(self.shares) > FREE

    def _turn(self) -> None:
        """Search downward if more threads were not faster, else end the search."""
        if self.direction > 0 and self.best == self.started:
            self.direction = -1
            self._try_next()
            return
        self.direction, self.settled = 0, 0.0
        if self.best != self.started:
            self.patience = PATIENCE
            self.report(f"using {counted(self.best)} from now on: steps are faster than with {self.started}")
        else:
            self.patience *= 2
        self._use(self.best)

    def _use(self, threads: int) -> None:
        self.times, self.shares = [], []
        if threads != self.threads:
            self.threads = threads
            self.set_threads(threads)


def choose_threads(
    given: int = 0, *, device: torch.device, compiled: bool = False, report: Callable[[str], None] = log.info
) -> ThreadChooser:
    """The chooser for this process. It sets the number of threads of the whole process, so only scripts call it.

    It measures on CPUs, in a single process, unless the user has chosen. torchrun chooses for its own processes, and
    compiled networks would be compiled again for another number of threads.

    Args:
        given: the number of threads that the user asks for; 0 means OMP_NUM_THREADS if it is set, else measuring.
        device: of the networks.
        compiled: whether networks are compiled.
        report: receives a message for the user.
    """
    if given:
        torch.set_num_threads(given)
    most = torch.get_num_threads()  # by default, the physical cores that this process may use
    if device.type != "cpu" or distributed.world_size() > 1:
        return ThreadChooser([])
    if given or os.environ.get("OMP_NUM_THREADS") or compiled:
        return ThreadChooser([most], report=report)
    candidates = powers_of_two(most)
    return ThreadChooser(candidates, start=max(n for n in candidates if n <= max(1, idle_cores(most))), report=report)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 and so on below `most`, and `most`."""
    return [*(2**exponent for exponent in range((most - 1).bit_length())), most]


def idle_cores(cores: int) -> int:
    """How many of the cores were idle in the last minute; may be negative."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # not on Windows
    return cores - round(busy)


def counted(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"
