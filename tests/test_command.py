"""How scripts end."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.image_folder import DataError
from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT, TINY, script, train
from util.command import with_advice
from util.errors import RemediedError

SCRIPT = """
import sys
from data import create_dataset
from options.train_options import TrainOptions
from util.command import run_command

def main():
    flags = ["--dataroot", sys.argv[1], "--load_size", "32", "--crop_size", "32", "--num_threads", "1"]
    for batch in create_dataset(TrainOptions().parse(flags)):
        raise {"ValueError": ValueError, "OSError": OSError, "KeyError": KeyError}[sys.argv[2]]("this is why")

sys.exit(run_command(main))
"""

NOTEBOOK = """
import sys
from data import create_dataset
from options.train_options import TrainOptions

flags = ["--dataroot", sys.argv[1], "--load_size", "32", "--crop_size", "32", "--num_threads", "1"]
loader = create_dataset(TrainOptions().parse(flags))
print(len(next(iter(loader))["A"]))
"""


@pytest.mark.parametrize(("error", "status"), [("ValueError", 2), ("OSError", 2), ("KeyError", 1)])
def test_errors_end_the_workers_too(error, status, tiny_data):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tiny_data, error],
        cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert "this is why" in done.stderr
    assert ("Traceback" in done.stderr) == (error == "KeyError"), "for our own mistakes, not for our users'"


def test_a_program_ends_with_a_loader_at_hand(tiny_data):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, tiny_data],
        cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> Path:
    """The folder of a run."""
    flags = ["--dataroot", tiny_data, "--max_dataset_size", "1", "--no_html"]
    return train(tmp_path_factory.mktemp("trained"), *flags)


def assert_one_line(done: subprocess.CompletedProcess, name: str, flag: str, reason: str) -> None:
    """A script ended with status 2 and one line with the reason and the flag that chooses another place."""
    assert done.returncode == 2
    message = rf"{name}: error: Cannot write \S+ \({reason}.*\): make that possible, or choose another {flag}\.\n"
    assert re.fullmatch(message, done.stderr), done.stderr


@pytest.mark.parametrize("flags", [[], ["--continue_train"]], ids=["new", "resumed"])
def test_a_read_only_place_for_a_run(flags, trained, tiny_data, small_disk, tmp_path):
    disk = small_disk("size=8m")
    if flags:
        shutil.copytree(trained, disk.folder / "run")
    disk.remount("ro")
    places = ["--checkpoints_dir", disk.folder, "--name", "run"]
    done = script("train.py", *places, "--dataroot", tiny_data, *TINY, *flags, cwd=tmp_path)
    assert_one_line(done, "train.py", "--checkpoints_dir", "Read-only file system")
    if not flags:
        done = script("train.py", *places, "--dataroot", tiny_data, *TINY, "--dry_run", cwd=tmp_path)
        assert done.returncode == 2
        assert f"--checkpoints_dir {disk.folder}: {disk.folder} cannot be written into" in done.stdout


@pytest.mark.parametrize(("options", "reason"), [("ro", "Read-only file system"), ("size=16k", "No space left")])
def test_a_place_for_results_that_takes_none(options, reason, trained, small_disk, tmp_path):
    disk = small_disk(options)
    places = ["--checkpoints_dir", trained.parent, "--name", "run", "--results_dir", disk.folder]
    assert_one_line(script("test.py", *places, cwd=tmp_path), "test.py", "--results_dir", reason)


def test_a_drive_that_is_gone(trained, tiny_data, tmp_path):
    (tmp_path / "drive").symlink_to(tmp_path / "gone")
    places = ["--checkpoints_dir", tmp_path / "drive", "--dataroot", tiny_data, *TINY]
    assert_one_line(script("train.py", *places, cwd=tmp_path), "train.py", "--checkpoints_dir", "File exists")
    places = ["--checkpoints_dir", trained.parent, "--name", "run", "--results_dir", tmp_path / "drive"]
    assert_one_line(script("test.py", *places, cwd=tmp_path), "test.py", "--results_dir", "File exists")


# ---- errors with a remedy


def test_a_remedy_becomes_flags():
    error = RemediedError("too large", remedy={"skip_bad_images": True, "batch_size": 1, "dataroot": "my maps"})
    assert error.flags() == ["--skip_bad_images", "--batch_size", "1", "--dataroot", "my maps"]
    assert error.advice() == "Try --skip_bad_images --batch_size 1 --dataroot 'my maps'."
    assert RemediedError("too large").advice() == ""
    assert pickle.loads(pickle.dumps(error)).remedy == error.remedy


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (RemediedError("Bad.", remedy={"batch_size": 1}), None, "Bad. Try --batch_size 1."),
        (RemediedError("Bad.", remedy={"batch_size": 1}), ["batch_size"], "Bad. Try --batch_size 1."),
        (RemediedError("Bad.", remedy={"batch_size": 1, "name": "x"}), ["batch_size"], "Bad."),
        (RemediedError("Bad.", remedy={"batch_size": 1}), [], "Bad."),
        (RemediedError("Bad:\n  why.", remedy={"batch_size": 1}), None, "Bad:\n  why.\nTry --batch_size 1."),
        (RemediedError("Bad."), None, "Bad."),
        (ValueError("Bad."), None, "Bad."),
    ],
)
def test_a_script_advises_flags_that_it_has(error, arguments, message):
    assert with_advice(error, arguments) == message


def test_the_error_of_a_worker_keeps_its_remedy_through_the_printed_traceback():
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1\ndata.image_folder.DataError: Cannot read DataError: 1.png.\nFound:\n  nothing\n'
        'remedy: {"skip_bad_images": true}\n'
    )
    error = DataError(message=text)
    assert str(error) == "Cannot read DataError: 1.png.\nFound:\n  nothing"
    assert error.remedy == {"skip_bad_images": True}
    assert str(DataError("In data.image_folder.DataError: x")) == "In data.image_folder.DataError: x"


def test_train_advises_and_combine_does_not(tmp_path):
    for folder in ("trainA", "trainB"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "0.png").touch()
    done = script("train.py", "--dataroot", tmp_path / "data" / "trainA", *TINY, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith(
        f"There is a folder trainA in {tmp_path / 'data'}.\nTry --dataroot {tmp_path / 'data'}.\n"
    )
    folders = ["--fold_A", tmp_path / "data" / "trainA", "--fold_B", tmp_path / "data" / "trainB"]
    done = script("datasets/combine_A_and_B.py", *folders, "--fold_AB", tmp_path / "AB", cwd=tmp_path)
    assert done.returncode == 2
    assert "Cannot read the image" in done.stderr and "Try --" not in done.stderr
