"""Runs that are killed (SIGKILL) at any moment, also while they save, and runs whose disk is full."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

import train as training
from models.weights import find_weights, load_networks
from tests.helpers import PATIENCE, assert_equal_checkpoints
from tests.test_cli import ROOT, TINY, logged_losses, train
from training.checkpoints import read_state, save_checkpoint
from training.finite import NotFiniteError
from util.checkpoint_files import complete_checkpoint, temporary

# The server that new processes are forked from imports torch once for all of them, and has no threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.test_kills"])


def run_quietly(function: Callable[..., int | None], log: Path, *arguments: object) -> None:
    """What a new process does: `function`, with its output in `log`."""
    torch.set_num_threads(1)
    with log.open("a") as sys.stdout:
        sys.stderr = sys.stdout
        sys.exit(function(*arguments))


def start(function: Callable[..., int | None], log: Path, *arguments: object) -> multiprocessing.process.BaseProcess:
    """`function(*arguments)` in a process of its own."""
    process = PROCESSES.Process(target=run_quietly, args=(function, log, *arguments))
    process.start()
    return process


# ---- one save, killed before each of its operations on files


def model_with(value: float, *names: str) -> nn.Module:
    model = nn.Module()
    for name in names:
        model.add_module(name, nn.Linear(2, 2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def save_and_die(run_dir: Path, operation: int) -> None:
    """Save a model of twos; die just before the given opening, renaming or removing of a file in run_dir."""
    model, left = model_with(2.0, "netG_A", "netG_B", "netD"), operation

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove") and str(run_dir) in str(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count)
    save_checkpoint(model, run_dir, "latest", {"value": 2.0})


def test_a_checkpoint_killed_anywhere_leaves_the_old_one_or_the_new_one(tmp_path):
    found = []
    for operation in range(100):
        run_dir = tmp_path / str(operation)
        run_dir.mkdir()
        save_checkpoint(model_with(1.0, "netG_A", "netG_A_ema", "netG_B", "netD"), run_dir, "latest", {"value": 1.0})
        process = start(save_and_die, tmp_path / "log.txt", run_dir, operation)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
        model, left = model_with(0.0, "netG_A", "netG_B", "netD"), sorted(run_dir.iterdir())
        state = read_state(run_dir, "latest")
        assert load_networks(model, run_dir, "latest")
        assert state
        assert {value.item() for weight in model.parameters() for value in weight.flatten()} == {state["value"]}
        assert sorted(run_dir.iterdir()) == left, "reading changes nothing"
        averages = find_weights(run_dir, "latest", ["G_A_ema", "G_A"])
        assert ("G_A_ema" in averages.name) == (state["value"] == 1)
        save_checkpoint(model, run_dir, "latest", {"value": 3.0})
        assert (
            set(complete_checkpoint(run_dir, "latest").values()) == set(run_dir.glob("*.pth")) == set(run_dir.iterdir())
        )
        found.append(state["value"])
    assert found == sorted(found) and {1.0, 2.0} == set(found) and len(found) >= 9


def test_files_of_two_checkpoints_are_not_taken_for_one(tmp_path):
    for value, folder in ((1.0, "a"), (2.0, "b")):
        (tmp_path / folder).mkdir()
        save_checkpoint(model_with(value, "netG", "netD"), tmp_path / folder, "latest", {})
    (tmp_path / "a" / "latest_net_D.pth").replace(tmp_path / "b" / "latest_net_D.pth")
    with pytest.raises(ValueError, match=r"^latest_net_D.pth in .*b differs from what latest_state.pth was saved with"):
        read_state(tmp_path / "b", "latest")


def test_weights_that_are_not_finite_leave_the_old_save_and_nothing_else(tmp_path):
    save_checkpoint(model_with(1.0, "netG", "netD"), tmp_path, "latest", {"value": 1.0})
    before = sorted(tmp_path.iterdir())
    broken = model_with(2.0, "netG", "netD")
    nn.init.constant_(broken.netD.bias, float("nan"))
    with pytest.raises(NotFiniteError, match="netD"):
        save_checkpoint(broken, tmp_path, "latest", {"value": 2.0})
    assert sorted(tmp_path.iterdir()) == before
    assert read_state(tmp_path, "latest")["value"] == 1


def test_the_state_is_read_while_a_run_gives_files_their_names(tmp_path, monkeypatch):
    save_checkpoint(model_with(1.0, "netG"), tmp_path, "latest", {"value": 1.0})
    for path in list(tmp_path.iterdir()):
        path.replace(temporary(path))

    def look(run_dir: Path, label: str) -> dict[str, Path]:
        found = complete_checkpoint(run_dir, label)
        assert found["latest_state.pth"] == temporary(tmp_path / "latest_state.pth")
        for path in found.values():
            path.replace(path.with_suffix(""))
        return found

    monkeypatch.setattr("training.checkpoints.complete_checkpoint", look)
    assert read_state(tmp_path, "latest")["value"] == 1


# ---- whole runs


def kill_and_continue(
    folder: Path, flags: list[str], *, kills: int, rng: random.Random, longest: float
) -> tuple[int, int]:
    """Train, but kill the process repeatedly and resume. Returns the number of kills, and of kills during a save.

    Every other kill, and the last, waits for files of a save that have no name yet.
    """
    places = ["--checkpoints_dir", str(folder), "--name", "run"]
    run_dir, done, saving = folder / "run", 0, 0
    while True:
        saved, left = bool(complete_checkpoint(run_dir, "latest")), unnamed(run_dir)
        process = start(training.main, folder / "log.txt", [*places, *(["--continue_train"] if saved else flags)])
        if done < kills:
            process.join(rng.uniform(0, longest))
            while (kills - done) % 2 and process.is_alive() and unnamed(run_dir) == left:
                time.sleep(0.001)
            process.join(rng.uniform(0, 0.01))
            process.kill()
        process.join()
        if process.exitcode == 0:
            return done, saving
        assert process.exitcode == -signal.SIGKILL, (folder / "log.txt").read_text()
        done += 1
        saving += unnamed(run_dir) != left


def unnamed(run_dir: Path) -> dict[str, int]:
    """The files of an interrupted checkpoint, and when they were written."""
    found = {}
    for path in run_dir.glob("latest_*.tmp"):
        with suppress(FileNotFoundError):  # it has got its name by now
            found[path.name] = path.stat().st_mtime_ns
    return found


def compare_with_killed(tmp_path: Path, flags: list[str], *, kills: int, seed: int, epochs: int) -> None:
    """A run that is killed so many times, at least once while it saves, ends like one that was never stopped."""
    common = [*TINY, *flags, "--n_epochs", str(epochs), "--save_latest_freq", "1"]
    rng, done, saving, attempt = random.Random(seed), 0, 0, 0
    (tmp_path / "whole").mkdir()
    start(print, tmp_path / "log.txt").join()  # the first one also waits for the server to import torch
    started = time.monotonic()
    kill_and_continue(tmp_path / "whole", common, kills=0, rng=rng, longest=0)
    longest = (time.monotonic() - started) / 2
    whole = tmp_path / "whole" / "run"
    while done < kills or not saving:
        assert attempt < 20, f"{done} kills, {saving} of them in the middle of saving"
        folder = tmp_path / str(attempt)
        folder.mkdir()
        more, more_saving = kill_and_continue(folder, common, kills=max(kills - done, 1), rng=rng, longest=longest)
        done, saving, attempt = done + more, saving + more_saving, attempt + 1
        assert_equal_checkpoints(whole, folder / "run")
        assert logged_losses(folder / "run") == logged_losses(whole)


def test_a_run_killed_a_few_times_ends_like_one_that_was_not(tiny_data, tmp_path):
    flags = ["--dataroot", str(tiny_data), "--model", "cycle_gan_attn", "--pool_size", "2", "--ema_decay", "0.9"]
    compare_with_killed(tmp_path, [*flags, "--num_threads", "1"], kills=3, seed=1, epochs=2)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("kills", "flags"),
    [
        (30, "--model cycle_gan_attn --pool_size 2 --num_threads 2 --ema_decay 0.9 --lr_policy plateau"),
        (6, "--model cycle_gan --pool_size 2 --gan_mode wgangp --lr_policy cosine"),
        (6, "--model sagan --netG sagan --batch_size 2 --diffaugment color,translation,cutout"),
        (6, "--model pix2pix --netG resnet_6blocks --pool_size 2 --num_threads 1 --lr_policy step --lr_decay_iters 1"),
    ],
    ids=["cycle_gan_attn", "cycle_gan", "sagan", "pix2pix"],
)
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(kills, flags, tiny_data, paired_data, tmp_path):
    data = paired_data if "pix2pix" in flags else tiny_data
    compare_with_killed(tmp_path, ["--dataroot", str(data), *flags.split()], kills=kills, seed=kills, epochs=6)


def test_a_run_is_trained_by_one_process_at_a_time(tiny_data, tmp_path):
    flags = ["--dataroot", str(tiny_data), "--n_epochs", "1000", "--save_latest_freq", "1", "--no_html"]
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    process = start(training.main, tmp_path / "log.txt", [*places, *TINY, *flags, "--num_threads", "1"])
    run_dir = tmp_path / "run"
    while process.is_alive() and not (run_dir / "loss_log.txt").exists():
        time.sleep(0.01)
    for second in ([*places, "--continue_train"], [*places, *TINY, *flags]):
        with pytest.raises(ValueError, match=rf"^{run_dir} is locked by another training process"):
            training.main(second)
    seen = len(logged_losses(run_dir))
    while process.is_alive() and len(logged_losses(run_dir)) < seen + 3:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert training.main([*places, "--continue_train", "--max_minutes", "0.0001"]) == 0, "nothing has to be removed"


def test_workers_end_with_a_run_that_is_killed(tiny_data, tmp_path):
    """Also by the start method of Python 3.14, with which their parent is a server that outlives the run."""
    method = "multiprocessing.set_start_method('forkserver')"
    code = f"import multiprocessing, sys, train; {method}; train.main(sys.argv[1:])"
    flags = ["--dataroot", str(tiny_data), "--checkpoints_dir", str(tmp_path), "--n_epochs", "1000", "--no_html"]
    command = [sys.executable, "-c", code, *TINY, *flags, "--num_threads", "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout and any(line.startswith(b"(epoch") for line in process.stdout)
        process.kill()
        process.communicate(timeout=PATIENCE)  # until the last process that has this output ends


# ---- full disks


def assert_a_full_disk_costs_nothing(
    folder: Path, whole: Path, flags: list[str], make_room: Callable[[], None]
) -> None:
    """Train where the second checkpoint does not fit: the first is unchanged, and the run resumes with more space."""
    with pytest.raises(OSError, match=r"Cannot write .+run \(.+; the previous checkpoint is unchanged\)") as error:
        train(folder, *flags)
    assert "\n" not in str(error.value)
    state = read_state(folder / "run", "latest")
    assert state and state["total_images"] == 0
    assert not list((folder / "run").glob("*.pth.tmp")), "room is not kept by what is of no use"
    make_room()
    train(folder, *flags, "--continue_train")
    assert_equal_checkpoints(whole, folder / "run")


@pytest.fixture
def whole_run(tiny_data, tmp_path):
    """A run of two epochs and its flags."""
    flags = ["--dataroot", str(tiny_data), "--max_dataset_size", "1", "--no_html"]
    return train(tmp_path / "whole", *flags), flags


def test_a_file_that_cannot_be_written_in_full(whole_run, tmp_path):
    """A limit on the size of files, which the state exceeds once the optimizers have one, acts like a full disk."""
    whole, flags = whole_run
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((whole / "latest_state.pth").stat().st_size // 2, limits[1]))
    try:
        assert_a_full_disk_costs_nothing(
            tmp_path, whole, flags, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(whole_run, small_disk):
    whole, flags = whole_run
    size = sum(path.stat().st_size for path in whole.glob("latest_*"))
    disk = small_disk(f"size={size}")
    assert_a_full_disk_costs_nothing(disk.folder, whole, flags, lambda: disk.remount(f"size={3 * size}"))


def test_a_full_disk_spares_an_earlier_run_of_the_name(whole_run, small_disk):
    whole, flags = whole_run
    size = sum(path.stat().st_size for path in whole.glob("*.*"))
    disk = small_disk(f"size={size + 2**17}")
    run_dir = shutil.copytree(whole, disk.folder / "run")
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    with pytest.raises(OSError, match=r"the previous checkpoint is unchanged"):
        train(disk.folder, *flags, "--ngf", "16")
    after = {name: (run_dir / name).read_bytes() for name in before}
    assert after == before, "also the options of the old weights"
