"""How scripts end."""

import subprocess
import sys

import pytest

from tests.test_cli import ONE_THREAD, ROOT

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


@pytest.mark.parametrize(("error", "status"), [("ValueError", 2), ("OSError", 2), ("KeyError", 1)])
def test_errors_end_the_loading_processes_too(error, status, tiny_data):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tiny_data, error],
        cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert "this is why" in done.stderr
    assert ("Traceback" in done.stderr) == (error == "KeyError"), "of our own mistakes, not of our users'"
