"""The number of CPU threads, chosen by timing steps. The clock is a fake: no test depends on real time."""

import itertools
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import test as testing
import train as training
from scripts import translate
from tests.helpers import assert_equal_checkpoints
from tests.test_cli import train
from training.checkpoints import read_state
from util import distributed
from util.threads import TIMED, WARMUP, WINDOW, ThreadChooser, choose_threads, powers_of_two

CPU = torch.device("cpu")
QUIET = {1: 17.0, 2: 12.0}  # seconds of a step of 4 images, by the number of threads
BUSY = {1: 17.0, 2: 43.0}
Cost = Callable[[int, int], float]  # takes the number of the step and the number of threads, returns seconds


class Machine:
    """A machine on which the step `index` with so many threads takes `cost(index, threads)` seconds."""

    def __init__(self, cost: Cost, candidates: list[int], start: int | None = None):
        self.cost, self.now, self.computed = cost, 0.0, 0.0
        self.share = 1.0  # of the time in which the main thread has a core
        self.used: list[int] = []
        self.lines: list[str] = []
        self.set_to = max(candidates)
        self.chooser = self.new_chooser(candidates, start)

    def new_chooser(self, candidates: list[int], start: int | None = None) -> ThreadChooser:
        """A chooser as in a process that has just started on this machine."""
        return ThreadChooser(
            candidates, start=start, clock=lambda: self.now, cpu_clock=lambda: self.computed,
            set_threads=self.set, report=self.lines.append,
        )  # fmt: skip

    def set(self, threads: int) -> None:
        self.set_to = threads

    def run(self, steps: int, images: int = 4) -> list[int]:
        """Take steps; returns the numbers of threads of all steps so far."""
        for _ in range(steps):
            assert self.set_to == self.chooser.threads
            self.used.append(self.set_to)
            with self.chooser.timed({"A": torch.empty(images, 3, 2, 2), "A_paths": ["a.png"] * images}):
                seconds = self.cost(len(self.used) - 1, self.set_to) * images / 4
                self.now += seconds
                self.computed += seconds * self.share
        return self.used


def lengths(used: list[int]) -> list[tuple[int, int]]:
    """(number of threads, steps in a row that took it)."""
    return [(threads, len(list(steps))) for threads, steps in itertools.groupby(used)]


def test_a_quiet_machine_keeps_its_threads():
    machine = Machine(lambda index, threads: QUIET[threads], [1, 2])
    assert lengths(machine.run(200)) == [(2, WARMUP + TIMED), (1, WARMUP + TIMED), (2, 200 - 2 * (WARMUP + TIMED))]
    assert machine.lines == []


def test_a_busy_machine_gets_one_thread():
    machine = Machine(lambda index, threads: BUSY[threads], [1, 2])
    assert lengths(machine.run(200)) == [(2, WARMUP + TIMED), (1, 200 - WARMUP - TIMED)]
    assert machine.lines == ["using 1 CPU thread from now on: steps are faster than with 2"]


@pytest.mark.parametrize(("costs", "best"), [(QUIET, 2), (BUSY, 1)])
def test_a_search_that_starts_with_one_thread_goes_up(costs, best):
    machine = Machine(lambda index, threads: costs[threads], [1, 2], start=1)
    machine.run(100)
    assert set(machine.used[: WARMUP + TIMED]) == {1} and machine.used[WARMUP + TIMED] == 2
    assert set(machine.used[2 * (WARMUP + TIMED) :]) == {best}


def test_no_search_goes_up_while_others_wait_for_cores():
    machine = Machine(lambda index, threads: QUIET[threads], [1, 2], start=1)
    machine.share = 0.6
    assert set(machine.run(1000)) == {1}
    machine.share = 1.0
    assert set(machine.run(50)[-20:]) == {2}


def test_steps_that_suddenly_take_ages_are_not_waited_for():
    machine = Machine(lambda index, threads: {1: 17.0, 2: 12.0 if index < 50 else 2000.0}[threads], [1, 2])
    machine.share = 0.4
    machine.run(200)
    assert machine.used[50:].count(2) == 2


def test_a_hopeless_number_of_threads_costs_one_step():
    machine = Machine(lambda index, threads: {1: 17.0, 2: 200.0}[threads], [1, 2], start=1)
    assert machine.run(100).count(2) == 1


def test_a_search_that_starts_in_the_middle_goes_both_ways():
    machine = Machine(lambda index, threads: 10.0 + abs(threads - 2), [1, 2, 4, 8], start=4)
    assert [threads for threads, _ in lengths(machine.run(50))] == [4, 8, 2, 1, 2]


def test_a_machine_that_becomes_busy_and_quiet_again_is_followed():
    machine = Machine(lambda index, threads: (BUSY if 100 <= index < 400 else QUIET)[threads], [1, 2])
    machine.run(100)
    assert set(machine.run(WINDOW + WARMUP + TIMED)[-2:]) == {1}, "within a few steps"
    machine.run(1000)
    assert set(machine.used[200:400]) == {1, 2} and machine.used[200:400].count(2) <= 3 * (WARMUP + 1)
    assert machine.used[-100:] == [2] * 100


def test_searches_take_a_small_part_of_the_time():
    for costs in (QUIET, BUSY, {1: 17.0, 2: 200.0}):
        machine = Machine(lambda index, threads, costs=costs: costs[threads], [1, 2])
        machine.run(3000)
        assert machine.now < 1.03 * 3000 * min(costs.values())


def test_a_large_machine_does_not_try_numbers_far_below_its_best():
    machine = Machine(lambda index, threads: 64 / threads, powers_of_two(64))
    assert set(machine.run(200)) == {64, 32}
    limited = Machine(lambda index, threads: 64 / min(threads, 8) + threads, powers_of_two(64))  # 8 cores granted
    assert limited.run(200)[-100:] == [8] * 100
    assert min(limited.used) == 4


def test_more_threads_are_tried_too_when_patience_is_over():
    machine = Machine(
        lambda index, threads: (64 / min(threads, 4) + threads) if index < 50 else 64 / threads, [4, 8, 16]
    )
    machine.run(50)
    assert machine.chooser.best == 4
    machine.run(1000)
    assert machine.chooser.best == 16


def test_single_slow_steps_change_nothing():
    machine = Machine(lambda index, threads: QUIET[threads] * (20 if index % 4 == 0 else 1), [1, 2])
    assert machine.run(100)[2 * (WARMUP + TIMED) :] == [2] * (100 - 2 * (WARMUP + TIMED))


def test_batches_of_other_sizes_are_no_change_of_speed():
    machine = Machine(lambda index, threads: QUIET[threads], [1, 2])
    machine.run(20)
    for images in (1, 40, 1, 100):
        machine.run(WINDOW, images)
    assert machine.used[20:] == [2] * (4 * WINDOW)


def test_a_step_that_fails_is_not_timed():
    machine = Machine(lambda index, threads: BUSY[threads], [1, 2])
    with pytest.raises(KeyError), machine.chooser.timed({}):
        raise KeyError
    assert machine.chooser.state_dict() == ThreadChooser([1, 2]).state_dict()


@pytest.mark.parametrize("candidates", [[], [4]])
def test_without_a_choice_nothing_is_measured_or_set(candidates):
    def fail(*arguments: object) -> float:
        raise AssertionError(arguments)

    chooser = ThreadChooser(candidates, clock=lambda: 0.0, set_threads=fail, report=fail)
    for _ in range(100):
        with chooser.timed({"A": torch.empty(1)}):
            pass
    assert chooser.state_dict() == ThreadChooser(candidates).state_dict()
    assert bool(chooser.state_dict()) == bool(candidates)


# ---- saving and resuming


@pytest.mark.parametrize("seed", range(20))
def test_a_chooser_restored_anywhere_continues_like_one_that_was_not(seed, tmp_path):
    rng = random.Random(seed)
    candidates = powers_of_two(rng.choice([2, 3, 8]))
    phases = [{threads: rng.choice([1, 2, 4, 8, 16]) for threads in candidates} for _ in range(6)]

    def cost(index: int, threads: int) -> float:
        return phases[min(index // 60, 5)][threads]

    whole, broken = Machine(cost, candidates), Machine(cost, candidates)
    whole.share = broken.share = rng.choice([0.5, 1.0])
    whole.run(400)
    while len(broken.used) < 400:
        torch.save(broken.chooser.state_dict(), tmp_path / "state.pth")
        broken.set(max(candidates))
        broken.chooser = broken.new_chooser(candidates)
        broken.chooser.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
        broken.run(min(rng.choice([1, 2, 7, 30]), 400 - len(broken.used)))
    assert broken.used == whole.used and broken.lines == whole.lines
    assert broken.chooser.state_dict() == whole.chooser.state_dict()
    assert len(set(whole.used)) > 1, "or nothing is tested"


@pytest.mark.parametrize(("saved", "now"), [([1], [2]), ([2], [1]), ([1, 2, 4, 8], [1, 2])])
def test_a_choice_of_the_user_or_a_smaller_machine_wins_over_the_saved_number(saved, now):
    lines: list[str] = []
    chooser = ThreadChooser(now, set_threads=lambda threads: pytest.fail(str(threads)), report=lines.append)
    chooser.load_state_dict(ThreadChooser(saved).state_dict())
    assert chooser.state_dict() == ThreadChooser(now).state_dict()
    assert len(lines) == 1 and lines[0].endswith("not bit-identical to the run so far")


def test_a_saved_choice_is_where_measuring_starts():
    machine = Machine(lambda index, threads: 10.0 + abs(threads - 3), [1, 2, 4])
    machine.chooser.load_state_dict(ThreadChooser([3]).state_dict())
    assert lengths(machine.run(20)) == [(3, WARMUP + TIMED), (2, WARMUP + TIMED), (3, 20 - 2 * (WARMUP + TIMED))]


def test_states_of_other_devices_and_of_older_runs_change_nothing():
    for candidates in ([], [1], [1, 2]):
        chooser = ThreadChooser(candidates, set_threads=lambda threads: pytest.fail(str(threads)), report=pytest.fail)
        chooser.load_state_dict({})
        assert chooser.state_dict() == ThreadChooser(candidates).state_dict()
    ThreadChooser([], report=pytest.fail).load_state_dict(ThreadChooser([1]).state_dict())


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What torch takes on a machine with two cores; tests may change it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_run_stopped_while_it_measures_ends_like_one_that_was_not(two_threads, tiny_data, tmp_path, monkeypatch):
    used: dict[str, list[int]] = {"whole": [], "broken": []}

    def choose_in(folder: str) -> Callable[..., ThreadChooser]:
        """A stand-in for `choose_threads` on a busy machine, where SIGTERM comes in one step."""

        class Measured(ThreadChooser):
            def timed(self, batch):
                used[folder].append(torch.get_num_threads())
                if folder == "broken" and len(used[folder]) == 6:  # the search is not over
                    signal.raise_signal(signal.SIGTERM)
                return super().timed(batch)

        def choose(*arguments: object, **keywords: object) -> ThreadChooser:
            torch.set_num_threads(2)
            readings = itertools.accumulate(BUSY[torch.get_num_threads()] for _ in itertools.count())
            return Measured([1, 2], clock=lambda: next(readings), cpu_clock=lambda: 0.0)

        return choose

    flags = ["--dataroot", str(tiny_data), "--no_html"]
    monkeypatch.setattr(training, "choose_threads", choose_in("whole"))
    whole = train(tmp_path / "whole", *flags)
    monkeypatch.setattr(training, "choose_threads", choose_in("broken"))
    train(tmp_path / "broken", *flags, status=128 + signal.SIGTERM)
    again = ["--checkpoints_dir", str(tmp_path / "broken"), "--name", "run", "--continue_train"]
    assert training.main(again) == 0
    assert used["broken"] == used["whole"] and set(used["whole"]) == {1, 2}
    assert_equal_checkpoints(whole, tmp_path / "broken" / "run")
    state = read_state(whole, "latest")
    assert state and state["threads"]["best"] == 1


# ---- what is measured, and what chooses instead


@pytest.mark.parametrize(("most", "candidates"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])])
def test_candidates(most, candidates):
    assert powers_of_two(most) == candidates


@pytest.mark.parametrize(
    ("how", "candidates"),
    [
        ("", [1, 2]), ("OMP_NUM_THREADS", [2]), ("compiled", [2]), ("given", [3]), ("cuda", []), ("torchrun", []),
    ],
)  # fmt: skip
def test_who_chooses(how, candidates, two_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (0.3, 9.0, 9.0), raising=False)
    if how == "OMP_NUM_THREADS":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if how == "torchrun":
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
    device = torch.device("cuda" if how == "cuda" else "cpu")
    chooser = choose_threads(3 if how == "given" else 0, device=device, compiled=how == "compiled")
    assert chooser.candidates == candidates
    assert torch.get_num_threads() == (3 if how == "given" else 2)


@pytest.mark.parametrize(("load", "threads"), [(0.0, 4), (0.4, 4), (1.0, 2), (2.4, 2), (3.0, 1), (50.0, 1)])
def test_measuring_starts_with_the_cores_that_are_idle(load, threads, two_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 9.0, 9.0), raising=False)
    torch.set_num_threads(4)
    assert choose_threads(device=CPU).threads == torch.get_num_threads() == threads


def test_cpu_threads_is_what_every_script_computes_with(two_threads, tiny_data, tmp_path, monkeypatch, capsys):
    seen: list[int] = []

    def spy(given: int, **keywords: Any) -> ThreadChooser:
        chooser = choose_threads(given, **keywords)
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)  # which is faster here
        return chooser

    for script in (training, testing, translate):
        monkeypatch.setattr(script, "choose_threads", spy)
    flags = ["--dataroot", str(tiny_data), "--max_dataset_size", "1"]
    run_dir = train(tmp_path, *flags, "--cpu_threads", "3")
    state = read_state(run_dir, "latest")
    assert state and state["threads"]["threads"] == 3
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert training.main([*places, "--continue_train", "--n_epochs", "2"]) == 0
    assert "not bit-identical" not in capsys.readouterr().out, "the flag is saved with the run"
    assert training.main([*places, "--continue_train", "--n_epochs", "3", "--cpu_threads", "1"]) == 0
    assert "saved with 3 CPU threads, resumed with 1: not bit-identical to the run so far" in capsys.readouterr().out
    assert testing.main([*places, "--results_dir", str(tmp_path / "results"), "--cpu_threads", "4"]) == 0
    source = str(tiny_data / "testA" / "0.png")
    assert translate.main([source, str(tmp_path / "out.png"), *places, "--cpu_threads", "5"]) == 0
    assert seen == [3, 3, 1, 4, 5]
    torch.set_num_threads(2)
    assert training.main([*places, "--continue_train", "--n_epochs", "4", "--dry_run", "--cpu_threads", "1"]) == 0
    assert torch.get_num_threads() == 1
