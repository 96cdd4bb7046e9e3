"""train.py --dry_run: its findings, its corrected command, and that it writes nothing."""

import shlex
import shutil
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

import train as training
from models.cycle_gan_model import CycleGANModel
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE
from tests.test_cli import ROOT, TINY, script
from tests.test_distributed import started
from training.dry_run import DryRun, duration, replaced
from util.checkpoint_files import temporary


def dry_run(capsys, *flags, status=0):
    """What a dry run with these flags prints."""
    assert training.main(["--dry_run", *TINY, *map(str, flags)]) == status
    return capsys.readouterr().out


def corrected(output):
    """The flags of the command in the last line of a dry run."""
    assert output.splitlines()[-2] == "The corrected command:"
    words = shlex.split(output.splitlines()[-1])
    assert words[:2] == ["python", "train.py"] and "--dry_run" not in words
    return words[2:]


def test_a_run_that_can_start_is_ready_and_nothing_is_written(tiny_data, tmp_path):
    before = sorted(tiny_data.rglob("*"))
    done = script("train.py", "--dry_run", "--dataroot", tiny_data, "--name", "x", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ready"
    assert list(tmp_path.iterdir()) == [] and sorted(tiny_data.rglob("*")) == before
    for part in (
        "  --netG resnet_6blocks\n",
        "  trainA/  5 images\n",
        "trainA: 5 of 5 images can be used: 3 PNG RGB, 2 JPEG RGB; 40x36 pixels\n",
        "netG_A: ",
        "One step of 1 images: ",
        "An epoch of 5 steps: ",
        f"in {Path('checkpoints') / 'x'}, where ",
    ):
        assert part in done.stdout
    assert "--lr_G" not in done.stdout, "follows from --lr"


def test_bad_flat_and_double_images_are_found(tiny_data, tmp_path, capsys):
    shutil.copytree(tiny_data, tmp_path / "data")
    data = tmp_path / "data"
    Image.new("RGB", (40, 36), "red").save(data / "trainA" / "flat.png")
    (data / "trainB" / "bad.png").write_bytes(b"nothing")
    shutil.copy(data / "trainA" / "0.png", data / "testA" / "copy.png")
    Image.open(data / "trainB" / "1.png").save(data / "testB" / "again.bmp")
    output = dry_run(capsys, "--dataroot", data, status=2)
    assert "Look at 1 images of a single color:\n" in output and "flat.png" in output
    assert f"{data}/testA/copy.png has the bytes of {data}/trainA/0.png" in output
    assert f"{data}/testB/again.bmp has the pixels of {data}/trainB/1.png" in output
    assert "trainB: 5 of 6 images can be used" in output
    flags = corrected(output)
    assert flags == [*TINY, "--dataroot", str(data), "--skip_bad_images"]
    assert training.main(["--dry_run", *flags]) == 0


def uneven(folder):
    """Images of two sizes."""
    for domain in ("trainA", "trainB"):
        (folder / domain).mkdir(parents=True)
        for name, size in (("a.png", (40, 36)), ("b.png", (44, 36))):
            draw_shapes(name, size).save(folder / domain / name)
    return folder


@pytest.mark.parametrize(
    ("flags", "problems", "change"),
    [
        (["--crop_size", "30"], ["cannot take|makes .* of 30x30"], ["--crop_size", "28"]),
        (["--preprocess", "none", "--batch_size", "2"], ["needs images of one size"], ["--batch_size", "1"]),
        (["--preprocess", "crop", "--crop_size", "40"], ["too small"], ["--preprocess", "resize_and_crop"]),
        (["--netG", "unet_128", "--load_size", "100", "--crop_size", "100"], ["100x100"], ["--crop_size", "128"]),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_corrected(flags, problems, change, tmp_path, capsys):
    data = uneven(tmp_path / "data")
    load = ["--load_size", "40"] if "--load_size" not in flags else []
    output = dry_run(capsys, "--dataroot", data, *load, *flags, status=2)
    command = corrected(output)
    at = command.index(change[0])
    assert command[at : at + 2] == change
    assert training.main(["--dry_run", *command]) == 0


def test_several_problems_are_corrected_at_once(tmp_path, capsys):
    data = uneven(tmp_path / "data" / "data")
    (data / "trainA" / "0.png").touch()
    output = dry_run(capsys, "--dataroot", tmp_path / "data", "--crop_size", "30", status=2)
    flags = corrected(output)
    assert "there is no folder trainA" in output and "0.png" in output and "30x30" in output
    assert training.main(["--dry_run", *flags]) == 0


def test_a_problem_that_no_flag_fixes(tmp_path, capsys):
    output = dry_run(capsys, "--dataroot", tmp_path / "missing", status=2)
    assert "there is no folder trainA" in output
    assert output.splitlines()[-1] == "No flag fixes this."


def test_a_loss_that_is_not_finite(tiny_data, capsys):
    output = dry_run(capsys, "--dataroot", tiny_data, "--lr", "1e30", status=2)
    assert "not finite" in output


def test_too_little_memory_asks_for_smaller_batches(tiny_data, monkeypatch, capsys):
    step = CycleGANModel.step

    def limited(self, batch):
        if len(batch["A"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch)

    monkeypatch.setattr(CycleGANModel, "step", limited)
    output = dry_run(capsys, "--dataroot", tiny_data, "--batch_size", "5", status=2)
    assert corrected(output)[-2:] == ["--batch_size", "2"]


def test_a_place_that_cannot_be_written(tiny_data, tmp_path, capsys):
    (tmp_path / "file").touch()
    output = dry_run(capsys, "--dataroot", tiny_data, "--checkpoints_dir", tmp_path / "file", status=2)
    assert f"{tmp_path / 'file'} cannot be written into" in output


def test_visdom_is_checked(tiny_data, capsys):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        flags = ["--dataroot", tiny_data, "--display_id", "1", "--display_port", port]
        assert f"visdom: reachable at http://localhost:{port}\n" in dry_run(capsys, *flags)
    assert "visdom: not reachable" in dry_run(capsys, *flags)


@pytest.fixture
def stopped_run(tiny_data, tmp_path):
    """The flags that find a run which was stopped after one of its ten steps."""
    flags = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert training.main([*flags, *TINY, "--dataroot", str(tiny_data), "--max_minutes", "0.00001"]) == 0
    return [*flags, "--continue_train"]


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_resumed_run_is_checked_with_its_weights(stopped_run, tmp_path, capsys):
    before = times_of(tmp_path)
    assert training.main([*stopped_run, "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "resuming run in epoch 1 after 1 images, 1 of the 5 of this epoch\n" in output
    assert "An epoch of 5 steps" in output and "; all 2 to do: " in output
    assert "  --netG resnet_6blocks\n" in output, "of its options all that are no defaults"
    assert times_of(tmp_path) == before
    (tmp_path / "run" / "latest_net_G_A.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"latest_net_G_A.pth in .* damaged or replaced"):
        training.main([*stopped_run, "--dry_run"])


def test_an_interrupted_checkpoint_stays_as_it_is(stopped_run, tmp_path):
    for path in (tmp_path / "run").glob("latest_*.pth"):
        path.replace(temporary(path))
    before = times_of(tmp_path)
    assert training.main([*stopped_run, "--dry_run"]) == 0
    assert times_of(tmp_path) == before


def test_other_flags_of_a_resumed_run_are_offered_with_override(stopped_run, tmp_path, capsys):
    assert training.main(["--dry_run", *stopped_run, "--lr", "0.001", "--crop_size", "30"]) == 2
    output = capsys.readouterr().out
    assert "--lr 0.001 (so far 0.0002)" in output and "makes 32x32 pixels of 30x30" in output
    flags = corrected(output)
    assert flags[:-5] == [*stopped_run, "--lr", "0.001"] and "--override" in flags and "28" in flags
    assert training.main(["--dry_run", *flags]) == 0
    assert capsys.readouterr().out.endswith("\nready\n")


def test_more_epochs_are_offered_where_none_are_left(stopped_run, capsys):
    assert training.main([*stopped_run, "--max_minutes", "0"]) == 0
    assert training.main(["--dry_run", *stopped_run]) == 2
    output = capsys.readouterr().out
    assert "nothing left to do: 2 epochs are done, and --n_epochs 1 with --n_epochs_decay 1 asks for 2\n" in output
    flags = corrected(output)
    assert flags == [*stopped_run, "--n_epochs", "2"]
    assert training.main(["--dry_run", *flags]) == 0


def test_a_command_is_parsed_once_until_it_is_corrected():
    asked = []

    def parse(words):
        asked.append(words)
        if "9" in words:
            raise ValueError("no 9 here")
        return words

    run = DryRun(["--dry_run", "--a", "1"], parse)
    assert run.opt == run.opt == ["--a", "1"]
    run.add("too little", ["--a", "2"])
    assert run.opt == run.opt == ["--a", "2"]
    assert asked == [["--a", "1"], ["--a", "2"]]
    run.add("too little still", ["--a", "9"])
    assert run.opt == ["--a", "2"] and not run.correctable
    assert run.problems == ["too little", "too little still", "no 9 here"]


def test_images_in_several_folders_are_named_by_what_they_share(tmp_path, capsys):
    for folder in ("trainA/x", "trainA/y", "trainB"):
        (tmp_path / folder).mkdir(parents=True)
        draw_shapes(folder, (40, 36)).save(tmp_path / folder / "0.png")
    output = dry_run(capsys, "--dataroot", tmp_path)
    assert "trainA: 2 of 2 images" in output
    assert output.index("trainB: 1 of 1") < output.index("One step of")
    single = ["--dataroot", tmp_path / "trainA", "--dataset_mode", "single", "--model", "sagan", "--netG", "sagan"]
    assert f"{tmp_path / 'trainA'}: 2 of 2 images" in dry_run(capsys, *single)


@pytest.mark.parametrize("flags", [[], ["--crop_size", "30"]], ids=["ready", "corrected"])
def test_of_several_processes_the_first_looks(flags, tiny_data, tmp_path):
    command = [ROOT / "train.py", "--dry_run", "--dataroot", tiny_data, *TINY, "--batch_size", "2", *flags]
    with started(*command, "--checkpoints_dir", tmp_path) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert "An epoch of 2 steps" in output, output
    if flags:
        assert "  torchrun --nproc_per_node=2 train.py --dataroot" in output
    else:
        assert process.returncode == 0
        assert output.count("One step of 2 images") == output.splitlines().count("ready") == 1
    assert list(tmp_path.iterdir()) == []


def test_flags_are_replaced_with_their_values():
    command = ["--a", "1", "--b", "2", "@file", "--a=3", "--c"]
    assert replaced(command, ["--a", "4"]) == ["--b", "2", "@file", "--c", "--a", "4"]
    assert replaced(command, ["--c"]) == [*command[:-1], "--c"]
    assert replaced(command, []) == command


def test_durations():
    assert [duration(seconds) for seconds in (5, 300, 8000, 900000)] == [
        "5.0 seconds", "5.0 minutes", "2.2 hours", "10.4 days",
    ]  # fmt: skip
