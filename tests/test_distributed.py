"""Runs of two processes, started by torchrun as a user would: gloo, on the CPU."""

import copy
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import train as training
from data import EpochSampler, create_dataset
from display.event_log import LogReader
from display.events import Metrics
from models.cycle_gan_model import CycleGANModel
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE, assert_as_exact, assert_equal_checkpoints, build_training_model, gradients
from tests.test_cli import ONE_THREAD, ROOT, TINY, logged_losses
from training.optimization import Optimization
from util import distributed
from util.checkpoint_files import temporary
from util.command import run_command
from util.device import select_device

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def nine_images(tmp_path_factory) -> Path:
    """trainA and trainB with nine images each: with four a step, the last step of an epoch has one."""
    root = tmp_path_factory.mktemp("nine")
    for folder in ("trainA", "trainB"):
        (root / folder).mkdir()
        for i in range(9):
            draw_shapes(f"{folder}/{i}").save(root / folder / f"{i}.png")
    return root


@contextmanager
def started(*flags: str | Path) -> Iterator[subprocess.Popen]:
    """Two processes of a script, or of -m and a module; their output is one stream. They end with the block."""
    with subprocess.Popen(
        [*TORCHRUN, *map(str, flags)], cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()


def together(*flags: str | Path) -> str:
    """What two processes of a script print; they have to succeed."""
    with started(*flags) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def places(folder: Path, *flags: str | Path) -> list[str]:
    """The flags of a tiny run in `folder`."""
    return [*TINY, "--checkpoints_dir", str(folder), "--name", "run", *map(str, flags)]


def test_two_processes_equal_one_with_batches_twice_as_large(nine_images, tmp_path):
    flags = ["--dataroot", nine_images, "--n_epochs", "2", "--n_epochs_decay", "0"]
    training.main(places(tmp_path / "one", *flags, "--batch_size", "4"))
    output = together(ROOT / "train.py", *places(tmp_path / "two", *flags, "--batch_size", "2"))
    assert "2 processes, 4 images a step" in output
    assert output.count("all 2 epochs are done") == output.count("netG_A: ") == 1
    one, two = (logged_losses(tmp_path / folder / "run") for folder in ("one", "two"))
    assert [re.sub(r" [\d.]+", "", line) for line in one] == [re.sub(r" [\d.]+", "", line) for line in two]
    numbers = [[float(number) for line in lines for number in re.findall(r"\d+\.\d+", line)] for lines in (one, two)]
    assert len(numbers[0]) == 6 * 8
    assert numbers[0][:8] == pytest.approx(numbers[1][:8], abs=2e-3)  # rounding grows; the next tests are exact


def test_processes_share_the_images_that_are_measured(nine_images, tmp_path):
    data = tmp_path / "data"
    for folder in ("trainA", "trainB"):
        shutil.copytree(nine_images / folder, data / folder)
        shutil.copytree(nine_images / folder, data / f"test{folder[-1]}")
    flags = [
        "--dataroot",
        data,
        "--n_epochs",
        "1",
        "--n_epochs_decay",
        "0",
        "--metrics",
        "kid,l1,cycle",
        "--best",
        "kid",
    ]
    training.main(places(tmp_path / "one", *flags, "--batch_size", "2"))
    together(ROOT / "train.py", *places(tmp_path / "two", *flags))
    events = [
        next(
            event
            for event in LogReader(tmp_path / folder / "run" / "events.jsonl").read()
            if isinstance(event, Metrics)
        )
        for folder in ("one", "two")
    ]
    assert events[1].values == pytest.approx(events[0].values, rel=0.02), "training differs by rounding"
    assert events[0].note == events[1].note and events[1].is_best
    files = [{path.name for path in (tmp_path / name / "run").glob("best_*")} for name in ("one", "two")]
    assert files[0] == files[1] != set()


def steps(file: Path, flags: list[str], *, double: bool, before: Path | None = None) -> None:
    """Train for two epochs, in as many processes as there are; save what was before and after each step, and in it.

    Args:
        before: such a file, from whose weights and optimizers each step starts, instead of those of the last step.
    """
    opt = TrainOptions().parse(flags)
    loader, model = create_dataset(opt), build_training_model(opt)
    optimization = model.optimization
    assert isinstance(optimization, Optimization)
    if double:
        model.double()
    given = torch.load(before, weights_only=True) if before else []
    made: list[dict[str, dict]] = []
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        seen = 0
        for batch in loader:
            if given:
                model.load_state_dict(given[len(made)]["weights"])
                for name, optimizer in optimization.optimizers.items():
                    optimizer.load_state_dict(given[len(made)]["optimizers"][name])
            state = {
                "weights": model.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in optimization.optimizers.items()},
            }
            made.append(copy.deepcopy(state))
            share, size = loader.sampler.share(seen), loader.sampler.step_size(seen)
            optimization.begin_step(share=share, progress=0.0, images=size, images_before=seen)
            images = {key: value.double() if double and key in "AB" else value for key, value in batch.items()}
            losses = distributed.average(model.step(images)[0], share)
            seen += size
            made[-1] |= {"after": copy.deepcopy(model.state_dict()), "losses": losses}
            made[-1]["gradients"] = gradients(dict(model.named_children()))
        optimization.end_epoch()
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    everywhere = distributed.gather(weights)
    if everywhere:
        assert all(torch.equal(weights, other) for other in everywhere)
        torch.save(made, file)


def assert_equal_steps(one: list[dict], two: list[dict], *, most: float) -> None:
    """Weights after each step differ by no more than `most`, losses, which are shown in single precision, by 1e-5."""
    for number, (step, other) in enumerate(zip(one, two, strict=True), start=1):
        for name, loss in step["losses"].items():
            assert loss.item() == pytest.approx(other["losses"][name].item(), rel=0, abs=1e-5), (number, name)
        for name, weight in step["after"].items():
            assert torch.allclose(weight, other["after"][name], rtol=0, atol=most), (number, name)


@pytest.mark.parametrize(("norm", "images"), [("instance", "9"), ("syncbatch", "7")])
def test_steps_are_the_same_to_the_last_digits(norm, images, nine_images, tmp_path):
    """With syncbatch there is no step with a single image, which both processes would count in their statistics."""
    flags = places(tmp_path, "--dataroot", nine_images, "--max_dataset_size", images, "--lr_policy", "plateau")
    flags += ["--norm", norm]
    steps(tmp_path / "one.pth", [*flags, "--batch_size", "4"], double=True)
    together("-m", __name__, "double", tmp_path / "two.pth", *flags, "--batch_size", "2")
    one, two = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("one", "two"))
    assert_equal_steps(one, two, most=1e-7)


def test_single_steps_are_as_exact_in_single_precision(nine_images, tmp_path):
    """Each of six steps, from the weights and averages of gradients that one process has before it."""
    flags = places(tmp_path, "--dataroot", nine_images)
    one, two, exact = (tmp_path / f"{name}.pth" for name in ("one", "two", "exact"))
    steps(one, [*flags, "--batch_size", "4"], double=False)
    steps(exact, [*flags, "--batch_size", "4"], double=True, before=one)
    together("-m", __name__, "from", one, two, *flags, "--batch_size", "2")
    made, plain, exact_steps = (
        [(step["losses"], step["gradients"]) for step in torch.load(file, weights_only=True)]
        for file in (two, one, exact)
    )
    assert len(made) == 6
    assert_as_exact(made, plain, exact_steps)


def go_wrong_once(flags: list[str]) -> None:
    """Train, where the third step of process 1, and of no other, has a non-finite loss."""
    step, seen = CycleGANModel.step, []

    def go_wrong(model: CycleGANModel, batch: dict) -> tuple[dict, dict]:
        losses, images = step(model, batch)
        seen.append(batch["A_paths"])
        wrong = distributed.rank() == 1 and len(seen) == 3
        return (losses | {"G_A": losses["G_A"] * torch.nan} if wrong else losses), images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CycleGANModel, "step", go_wrong)
        sys.exit(run_command(lambda: training.main(flags)))


def test_all_go_back_when_one_process_has_a_loss_that_is_not_finite(nine_images, tmp_path):
    flags = places(tmp_path, "--dataroot", nine_images, "--on_nan", "rollback", "--n_epochs_decay", "0")
    output = together("-m", __name__, "wrong", *flags, "--save_latest_freq", "1", "--serial_batches")
    folder = nine_images / "trainA"
    assert f"G_A is nan in the step on {folder}/5.png, {nine_images}/trainB/5.png. Rolled back to epoch 1 " in output
    assert output.count("with half the learning rates (1 of 3)") == 1
    assert len(logged_losses(tmp_path / "run")) == 5
    state = torch.load(tmp_path / "run" / "latest_state.pth", weights_only=True)
    assert state["model"]["halvings"] == 1 and state["total_images"] == 9


@pytest.mark.faults
def test_all_go_back_when_weights_cannot_be_saved(nine_images, tmp_path):
    flags = places(tmp_path, "--dataroot", nine_images, "--on_nan", "rollback", "--save_latest_freq", "1")
    with started(ROOT / "train.py", *flags, "--lr", "1e39") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert output.count("has weights that are not finite: the checkpoint is not saved. Rolled back to epoch 1") == 3
    assert "halving the learning rate 3 times was not enough" in output and "another process has ended" not in output


@pytest.mark.faults
def test_an_interrupted_checkpoint_is_completed_on_all_ranks(nine_images, tmp_path):
    training.main(places(tmp_path, "--dataroot", nine_images, "--max_dataset_size", "3"))
    for path in (tmp_path / "run").glob("latest_*.pth"):
        if "net_D" not in path.name:
            path.replace(temporary(path))
    flags = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train", "--n_epochs", "2"]
    output = together(ROOT / "train.py", *flags)
    assert "resuming run in epoch 3 after 6 images" in output and "all 3 epochs are done" in output
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.faults
@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "cycle_gan", "--pool_size", "2", "--norm", "syncbatch", "--max_dataset_size", "7"],
        ["--model", "fastcut", "--pool_size", "2", "--norm", "syncbatch", "--max_dataset_size", "7"],
        [
            "--model",
            "sagan",
            "--netG",
            "sagan",
            "--batch_size",
            "2",
            "--diffaugment",
            "color",
            "--dataset_mode",
            "unaligned",
        ],
    ],
    ids=lambda flags: flags[1],
)
def test_stopped_and_resumed_equals_never_stopped(flags, nine_images, tmp_path, capsys):
    flags = ["--dataroot", nine_images, "--n_epochs", "4", "--n_epochs_decay", "0", *flags]
    together(ROOT / "train.py", *places(tmp_path / "whole", *flags))
    signalled = ["-m", "tests.signalled", "parent", "SIGTERM", "(epoch: 2"]  # the parent is torchrun
    with started(*signalled, *places(tmp_path / "broken", *flags)) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert output.count("To resume: ") == 1, output
    broken, whole = tmp_path / "broken" / "run", tmp_path / "whole" / "run"
    assert 3 < len(logged_losses(broken)) < len(logged_losses(whole))
    state = torch.load(broken / "latest_state.pth", weights_only=True)
    (other,) = state["other_processes"]
    assert not torch.equal(other["random"]["cpu"], state["random"]["cpu"])
    for name, images in state["model"]["pools"].items():
        assert not torch.equal(images[0], other["pools"][name][0])
    again = ["--checkpoints_dir", str(broken.parent), "--name", "run", "--continue_train", "--n_epochs", "4"]
    assert "not exactly" not in together(ROOT / "train.py", *again)
    assert logged_losses(broken) == logged_losses(whole)
    assert_equal_checkpoints(whole, broken)


@pytest.mark.faults
def test_another_number_of_processes_resumes(nine_images, tmp_path, capsys):
    flags = places(tmp_path, "--dataroot", nine_images, "--n_epochs_decay", "0", "--max_dataset_size", "3")
    training.main(flags)
    again = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train", "--n_epochs"]
    assert "saved by 1 processes, resumed by 2: not bit-identical" in together(ROOT / "train.py", *again, "2")
    capsys.readouterr()
    training.main([*again, "3"])
    assert "saved by 2 processes, resumed by 1: not bit-identical" in capsys.readouterr().out
    positions = [tuple(map(int, re.findall(r"\d+", line)[:2])) for line in logged_losses(tmp_path / "run")]
    assert positions == [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)]


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_others_end(victim, nine_images, tmp_path):
    flags = places(tmp_path, "--dataroot", nine_images, "--n_epochs", "1000")
    with started(ROOT / "train.py", *flags) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("(epoch: 2"):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = {rank_of(child): int(child) for child in children}
        os.kill(workers[victim], signal.SIGKILL)
        rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "another process has ended" in rest
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())


def rank_of(pid: str) -> int:
    """The rank in the environment of a process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(value.removeprefix(b"RANK=")) for value in variables if value.startswith(b"RANK="))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 11, 12])
@pytest.mark.parametrize(("processes", "batch_size", "skip"), [(2, 2, 0), (3, 1, 0), (4, 3, 0), (2, 2, 4)])
def test_a_step_of_all_processes_has_the_images_of_one_process(size, processes, batch_size, skip):
    dataset = TensorDataset(torch.zeros(size))

    def steps(**kwargs) -> list[list[tuple[int, int]]]:
        sampler = EpochSampler(dataset, shuffle=True, seed=1, **kwargs)
        sampler.set_epoch(3, skip=skip)
        order = list(sampler)
        assert len(order) == len(sampler)
        return [order[i : i + sampler.batch_size] for i in range(0, len(order), sampler.batch_size)]

    whole = steps(batch_size=batch_size * processes)
    parts = [steps(batch_size=batch_size, rank=rank, world_size=processes) for rank in range(processes)]
    samplers = [
        EpochSampler(dataset, shuffle=True, seed=1, batch_size=batch_size, rank=rank, world_size=processes)
        for rank in range(processes)
    ]
    seen = skip
    for step, images in enumerate(whole):
        shares = [sampler.share(seen) for sampler in samplers]
        assert math.fsum(shares) == pytest.approx(1)
        assert samplers[0].step_size(seen) == len(images)
        own = [part[step] for part, share in zip(parts, shares, strict=True) if share]
        assert sorted(index for part in own for index in part) == sorted(images)
        assert [share * len(images) for share in shares if share] == pytest.approx([len(part) for part in own])
        seen += len(images)
    assert {len(part) for part in parts} == {len(whole)}
    assert seen == max(size, skip)


@pytest.mark.parametrize(
    ("gpu_ids", "device", "message"),
    [("0", "cuda:1", ""), ("3,2", "cuda:2", ""), ("1", "", "2 processes need a GPU each"), ("0,4", "", "GPUs 0 to 3")],
)
def test_every_process_has_a_gpu(gpu_ids, device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    if message:
        with pytest.raises(ValueError, match=message):
            select_device("auto", gpu_ids)
    else:
        assert select_device("auto", gpu_ids) == torch.device(device)


def test_a_dry_run_in_two_processes_takes_syncbatch(nine_images, tmp_path):
    flags = places(tmp_path, "--dataroot", nine_images, "--norm", "syncbatch", "--batch_size", "2", "--dry_run")
    assert "\nready\n" in together(ROOT / "train.py", *flags)


@pytest.mark.parametrize("own", distributed.OWN_ERRORS)
def test_an_error_of_this_process_is_not_blamed_on_others(own):
    with pytest.raises(own, match="of this GPU"), distributed._connected():
        raise own("of this GPU")


SHUTDOWN = """
import torch
import torch.distributed as dist

from util import distributed

for _ in range(100):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.all_reduce(torch.ones(1000))  # the last to refer to the tensor may be a thread of gloo
    distributed.shutdown()
"""


def test_shutdown_does_not_wait_for_a_thread_that_waits_for_it():
    subprocess.run([sys.executable, "-c", SHUTDOWN], cwd=ROOT, env=ONE_THREAD, timeout=120, check=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *words = sys.argv[1:]
    if what == "wrong":
        go_wrong_once(words)
    distributed.setup(torch.device("cpu"))
    if what == "double":
        steps(Path(words[0]), words[1:], double=True)
    else:
        steps(Path(words[1]), words[2:], double=False, before=Path(words[0]))
    distributed.shutdown()
