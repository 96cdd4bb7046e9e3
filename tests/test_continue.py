"""Runs that stop and resume: exactly, with the flags of the run, and never on top of another run."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import test as testing
import train as training
from display.event_log import LogReader
from display.events import Losses
from tests.helpers import PATIENCE, assert_equal_checkpoints, more_workers_than_cores
from tests.test_cli import ONE_THREAD, ROOT, TINY, logged_losses, train
from training.checkpoints import read_state


def train_until(line: str, number: signal.Signals, folder: Path, *flags: str | Path) -> Path:
    """Train in a process that gets a signal, with its workers, when it prints a line; returns the folder of the run."""
    places = ["--checkpoints_dir", folder, "--name", "run", *TINY]
    command = [sys.executable, "-m", "tests.signalled", "group", number.name, line, *places, *flags]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, check=False,
        start_new_session=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    assert done.stdout.count("To resume: ") == (number != signal.SIGKILL)
    return folder / "run"


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGTERM, ["--model", "cycle_gan_attn", "--pool_size", "2", "--ema_decay", "0.9"]),
        (signal.SIGINT, ["--model", "sagan", "--netG", "sagan", "--batch_size", "2", "--diffaugment", "color,cutout"]),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_interrupted_and_resumed_equals_uninterrupted(tiny_data, tmp_path, number, flags):
    """The signal reaches the workers too, as from timeout or Slurm."""
    flags = ["--dataroot", tiny_data, *flags]
    whole = train(tmp_path / "whole", *flags, "--n_epochs", "3")
    flags += ["--num_threads", "1", "--n_epochs", "3"]
    broken = train_until("(epoch: 2, iters: 2", number, tmp_path / "broken", *flags)
    lines = logged_losses(broken)
    assert lines == logged_losses(whole)[: len(lines)] and lines[-1].startswith("(epoch: 2, iters: 2")
    again = ["--checkpoints_dir", str(broken.parent), "--name", "run", "--continue_train"]
    assert training.main([*again, "--n_epochs", "3"]) == 0
    assert logged_losses(broken) == logged_losses(whole)
    assert_equal_checkpoints(whole, broken)


def test_a_killed_run_resumes_without_a_gap_or_a_double_line(tiny_data, tmp_path):
    flags = ["--dataroot", tiny_data, "--save_latest_freq", "4", "--update_html_freq", "2"]
    whole = train(tmp_path / "whole", *flags, "--n_epochs", "3")
    # in epoch 3, between two saves
    broken = train_until("(epoch: 3, iters: 1", signal.SIGKILL, tmp_path / "broken", *flags, "--n_epochs", "3")
    with (broken / "events.jsonl").open("a") as log:
        log.write('{"kind": "los')
    again = ["--checkpoints_dir", str(broken.parent), "--name", "run", "--continue_train"]
    assert training.main([*again, "--n_epochs", "3"]) == 0
    assert logged_losses(broken) == logged_losses(whole)

    def values(run_dir):
        logged = [event for event in LogReader(run_dir / "events.jsonl").read() if isinstance(event, Losses)]
        machine = "images_per_second", "peak_memory_mb"
        numbers = [{name: value for name, value in event.values.items() if name not in machine} for event in logged]
        return [(event.step, event.epoch, event.images) for event in logged], numbers

    assert values(broken) == values(whole)
    images = [{path.name: path.read_bytes() for path in run.glob("web/images/*")} for run in (whole, broken)]
    assert images[0] == images[1]


@more_workers_than_cores
@pytest.mark.parametrize(
    "flags",
    [
        "--lr_policy linear --gan_mode wgangp",
        "--lr_policy step --lr_decay_iters 1 --cycle_noise 0.1 --identity_decay --lambda_projected 1",
        "--lr_policy plateau --ema_halflife 1",
        "--lr_policy cosine --batch_size 2 --num_threads 2",
        "--model cycle_gan_attn --pool_size 1 --precision bf16 --resample blur",
        "--model sagan --netG sagan --ema_decay 0.9 --minibatch_std --batch_size 2 --lambda_projected 1",
        "--gan_mode relativistic --lambda_r1 1 --lambda_r2 1 --lambda_zero_gp 1 --penalty_every 2",
        "--model pix2pix --netG resnet_6blocks --pool_size 1 --lr_policy cosine --batch_head 2",
        "--model fastcut --nce_idt --num_patches 16 --pool_size 1 --direction BtoA",
        "--model sagan --netG sagan --class_of ([0-9]) --batch_size 2 --precision bf16",
        "--accumulate 2 --pool_size 1 --ema_halflife 4",
    ],
)
def test_a_run_that_stops_after_every_step_ends_like_one_that_never_stopped(tiny_data, paired_data, tmp_path, flags):
    flags = ["--dataroot", paired_data if "pix2pix" in flags else tiny_data, *flags.split()]
    flags += ["--max_dataset_size", "3", "--n_epochs", "2", "--no_html"]
    whole = train(tmp_path / "whole", *flags)
    parts = train(tmp_path / "parts", *flags, "--max_minutes", "0.00001")
    while torch.load(parts / "latest_state.pth")["total_images"] < 9:
        train(tmp_path / "parts", *flags, "--continue_train", "--max_minutes", "0.00001")
    assert_equal_checkpoints(whole, parts)
    assert logged_losses(parts) == logged_losses(whole)


@pytest.mark.faults
def test_a_compiled_run_resumes_like_one_that_never_stopped(tiny_data, tmp_path):
    script = "import sys, train; from training import compiling; compiling.PAYS_AFTER = 1; sys.exit(train.main())"
    flags = [*TINY, "--dataroot", tiny_data, "--max_dataset_size", "4", "--n_epochs_decay", "0", "--no_html"]
    flags += ["--compile", "--pool_size", "1", "--name", "run"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    limits = (whole, ["0"]), (parts, ["0.00001"]), (parts, ["0", "--continue_train"])
    for folder, limit in limits:  # each in a process of its own: what is compiled is shared within one
        command = [sys.executable, "-c", script, *flags, "--checkpoints_dir", folder, "--max_minutes", *limit]
        done = subprocess.run(
            [*map(str, command)], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, check=True,
            timeout=PATIENCE,
        )  # fmt: skip
        assert "the networks are compiled" in done.stdout
    assert_equal_checkpoints(whole / "run", parts / "run")
    assert logged_losses(parts / "run") == logged_losses(whole / "run")


def test_a_run_gains_attention_by_resuming_as_another_model(tiny_data, tmp_path, capsys):
    plain = train(tmp_path, "--dataroot", tiny_data, "--n_epochs_decay", "0")
    before = torch.load(plain / "latest_net_G_A.pth", weights_only=True)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train", "--model", "cycle_gan_attn"]
    assert training.main([*places, "--lr", "1e-9", "--override"]) == 0
    shown = capsys.readouterr().out
    assert "new blocks start with gamma 0" in shown and "the run so far stays as --epoch old" in shown
    kept = torch.load(plain / "old_net_G_A.pth", weights_only=True)
    assert all(torch.equal(before[key], kept[key]) for key in before)
    assert (plain / "old_state.pth").is_file()
    after = torch.load(plain / "latest_net_G_A.pth", weights_only=True)
    assert {key for key in after if key not in before} == {key for key in after if key.startswith("attention.block3.")}
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_a_run_that_has_more_epochs_behind_it_is_left_alone(tiny_data, tmp_path, capsys):
    run_dir = train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", "--n_epochs", "3")
    before = {path: path.read_bytes() for path in run_dir.rglob("*.*")}
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train"]
    assert training.main([*places, "--n_epochs", "2", "--n_epochs_decay", "0"]) == 0
    shown = capsys.readouterr().out
    assert "nothing left to do: 4 epochs are done, and --n_epochs 2 with --n_epochs_decay 0 asks for 2\n" in shown
    assert {path: path.read_bytes() for path in run_dir.rglob("*.*")} == before
    assert training.main(places) == 0
    assert "all 4 epochs are done" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_the_run_to_resume_is_found_before_the_images(flags, tiny_data, tmp_path):
    places = ["--checkpoints_dir", str(tmp_path), "--continue_train", "--dataroot", str(tmp_path / "missing"), *flags]
    with pytest.raises(ValueError, match=r"^no run 'nope': .* holds no runs"):
        training.main([*places, "--name", "nope"])
    train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1")
    with pytest.raises(ValueError, match=r"^7_net_\*\.pth is not in .*, which holds latest_net_D_A\.pth, ") as error:
        training.main([*places, "--name", "run", "--epoch", "7"])
    assert error.value.remedy == {"epoch": "latest"}
    with pytest.raises(ValueError, match=r"^no run 'ran': .* holds run\.$") as error:
        training.main([*places, "--name", "ran"])
    assert error.value.remedy == {"name": "run"}


def test_a_checkpoint_is_chosen_for_something(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"^--epoch and --load_iter .* need --continue_train or --init_from$"):
        train(tmp_path, "--dataroot", tiny_data, "--epoch", "5")
    whole = train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1")
    file = str(whole / "latest_net_G_A.pth")
    with pytest.raises(ValueError, match=r"latest_net_G_A.pth is one file: --epoch and --load_iter"):
        training.main([*TINY, "--dataroot", str(tiny_data), "--name", "new", "--init_from", file, "--load_iter", "5"])


def test_a_run_restarted_by_mistake_can_be_resumed(tiny_data, tmp_path, capsys):
    flags = ["--dataroot", tiny_data, "--max_dataset_size", "2", "--ema_decay", "0.9"]
    whole = train(tmp_path / "whole", *flags)
    train(tmp_path, *flags, "--max_minutes", "0.00001")
    run_dir = train(tmp_path, "--continue_train", "--max_minutes", "0.00001", *flags)
    for _ in range(2):
        train(tmp_path, *flags, "--seed", "1", "--max_minutes", "0.00001")
    go_on = f"python train.py --name run --checkpoints_dir {tmp_path} --continue_train --epoch old"
    shown = capsys.readouterr().out
    assert f"run already holds a run, which this one replaces; to resume it: {go_on}\n" in shown
    assert f"which this one replaces; to resume the longer run before it: {go_on}\n" in shown
    assert training.main([*go_on.split()[2:], "--max_minutes", "0"]) == 0
    assert "resuming run in epoch 2 after 2 images" in capsys.readouterr().out
    assert_equal_checkpoints(whole, run_dir)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_read_costs_nothing(workers, tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    bad = data / "trainA" / "2.png"
    bad.write_bytes(bad.read_bytes()[:100])
    flags = ["--serial_batches", "--num_threads", workers]
    with pytest.raises(ValueError, match=r"2\.png"):
        train(tmp_path, "--dataroot", data, *flags)
    assert torch.load(tmp_path / "run" / "latest_state.pth")["total_images"] == 2
    shutil.copy(tiny_data / "trainA" / "2.png", bad)
    run_dir = train(tmp_path, "--dataroot", data, *flags, "--continue_train")
    assert_equal_checkpoints(train(tmp_path / "whole", "--dataroot", tiny_data, *flags), run_dir)


def test_checkpoints_after_the_resumed_epoch_are_set_aside(tiny_data, tmp_path):
    flags = ["--dataroot", tiny_data, "--max_dataset_size", "1", "--save_epoch_freq", "1", "--n_epochs", "2"]
    run_dir = train(tmp_path, *flags)
    train(tmp_path, *flags, "--continue_train", "--epoch", "1", "--max_minutes", "0.00001")
    assert [read_state(run_dir, label)["total_images"] for label in ("latest", "old")] == [2, 3]


def test_weights_without_a_state_are_set_aside_too(tiny_data, tmp_path):
    run_dir = train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1")
    (run_dir / "latest_state.pth").unlink()
    before = {path.name: path.read_bytes() for path in run_dir.glob("latest_*")}
    train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1")
    assert {path.name.replace("old", "latest"): path.read_bytes() for path in run_dir.glob("old_*")} == before


def test_a_run_with_other_images_says_so(tiny_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", tiny_data, "--max_minutes", "0.00001")
    flags = ["--continue_train", "--max_dataset_size", "3", "--override", "--max_minutes", "0.00001"]
    train(tmp_path, "--dataroot", tiny_data, *flags)
    assert "saved with 5 images, resumed with 3: not bit-identical to the run so far" in capsys.readouterr().out


def test_a_resumed_run_obeys_new_flags(tiny_data, tmp_path, capsys):
    run_dir = train(tmp_path, "--dataroot", tiny_data, "--n_epochs_decay", "0")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train"]
    changed = ["--n_epochs", "2", "--lr", "0.001", "--load_size", "40"]
    before = {path: path.read_bytes() for path in run_dir.glob("*.*")}
    flags = r"--load_size 40 \(so far 36\), --lr 0.001 \(so far 0.0002\), --lr_G .*\. Omit them, or override"
    with pytest.raises(ValueError, match=flags) as refused:
        training.main([*places, *changed])
    assert refused.value.flags() == ["--override"]
    assert "n_epochs" not in str(refused.value), "more epochs are no other run"
    assert {path: path.read_bytes() for path in run_dir.glob("*.*")} == before
    before = torch.load(run_dir / "latest_net_G_A.pth", weights_only=True)["model.1.weight"]
    assert training.main([*places, *changed, "--override"]) == 0
    assert "resuming with other flags: --load_size 40 (so far 36)" in capsys.readouterr().out
    state = torch.load(run_dir / "latest_state.pth", weights_only=True)["model"]
    assert state["optimizers"]["G"]["param_groups"][0]["initial_lr"] == 0.001
    assert not torch.equal(before, torch.load(run_dir / "latest_net_G_A.pth", weights_only=True)["model.1.weight"])


def test_a_refused_call_leaves_the_run_as_it_was(tiny_data, tmp_path):
    run_dir = train(tmp_path, "--dataroot", tiny_data)
    before = {path: path.read_bytes() for path in run_dir.glob("*.*")}
    with pytest.raises(ValueError, match="multiples of 4"):
        train(tmp_path, "--dataroot", tiny_data, "--crop_size", "30")
    assert {path: path.read_bytes() for path in run_dir.glob("*.*")} == before


def test_averages_of_an_earlier_run_are_not_taken_for_this_one(tiny_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", tiny_data, "--ema_decay", "0.9")
    run_dir = train(tmp_path, "--dataroot", tiny_data)
    assert not list(run_dir.glob("latest_*_ema.pth"))
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert training.main([*places, "--continue_train", "--n_epochs", "2", "--ema_decay", "0.9", "--override"]) == 0
    assert testing.main([*places, "--results_dir", str(tmp_path / "results")]) == 0
    assert "latest_net_G_A_ema.pth" in capsys.readouterr().out


@pytest.mark.parametrize(("before", "after"), [("0", "1"), ("1", "0")])
def test_a_run_keeps_its_networks(tiny_data, tmp_path, before, after):
    train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", "--lambda_projected", before)
    other = ["--continue_train", "--n_epochs", "2", "--lambda_projected", after, "--override"]
    with pytest.raises(ValueError, match=r"the run has the networks D_A.*: --lambda_projected, for one, adds") as error:
        training.main(["--checkpoints_dir", str(tmp_path), "--name", "run", *other])
    assert error.value.remedy == {"init_from": "run"}


def test_a_state_of_another_model_is_refused(tiny_data, tmp_path):
    run_dir = train(tmp_path, "--dataroot", tiny_data)
    torch.save({"epoch": 1}, run_dir / "latest_state.pth")
    with pytest.raises(ValueError, match=r"latest_state.pth in .* does not belong to this model"):
        train(tmp_path, "--dataroot", tiny_data, "--continue_train")
    torch.save(torch.zeros(1), run_dir / "latest_net_G_A.pth")
    with pytest.raises(ValueError, match="is no checkpoint: it holds a Tensor"):
        train(tmp_path, "--dataroot", tiny_data, "--continue_train")


@more_workers_than_cores
def test_loading_in_other_processes_changes_nothing(tiny_data, tmp_path):
    runs = [
        train(tmp_path / workers, "--dataroot", tiny_data, "--num_threads", workers, "--n_epochs_decay", "0")
        for workers in ("0", "2")
    ]
    assert_equal_checkpoints(*runs)


def test_a_run_of_minutes_ends_with_them_and_its_learning_rate_falls_with_the_time(tiny_data, tmp_path, capsys):
    flags = ["--dataroot", tiny_data, "--max_dataset_size", "2", "--n_epochs", "0", "--n_epochs_decay", "1000"]
    flags += ["--print_freq", "1", "--no_html", "--train_minutes"]
    run_dir = train(tmp_path, *flags, "0.05", "--max_minutes", "0.00001")
    while "all 0.05 minutes are done" not in capsys.readouterr().out:  # the time is counted over all parts
        train(tmp_path, *flags, "0.05", "--continue_train", "--max_minutes", "0.02")
    state = torch.load(run_dir / "latest_state.pth")
    assert state["epoch"] < 1000 and state["seconds"] >= 3
    rates = [event.values["lr_G"] for event in LogReader(run_dir / "events.jsonl").read() if isinstance(event, Losses)]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    train(tmp_path, *flags, "0.05", "--continue_train")
    assert "all 0.05 minutes are done" in capsys.readouterr().out
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert training.main([*places, "--continue_train", "--dry_run"]) != 0
    assert "the 0.05 minutes of --train_minutes are over" in capsys.readouterr().out
