"""The notebooks run from top to bottom."""

import subprocess
import sys

import nbformat
import pytest

from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT

# In a process of its own, since nbclient leaves an event loop open.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], nbformat.NO_CONVERT)
NotebookClient(notebook).execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_without_outputs(path, tmp_path):
    stored = code_cells(path)
    assert not any(cell.outputs or cell.execution_count for cell in stored)
    env = ONE_THREAD | dict.fromkeys(("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, path, tmp_path / "done.ipynb"], cwd=path.parent, env=env, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = [output for cell in code_cells(tmp_path / "done.ipynb") for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
    assert "G_A after" in "".join(output.get("text", "") for output in shown)


def code_cells(path):
    return [cell for cell in nbformat.read(path, nbformat.NO_CONVERT).cells if cell.cell_type == "code"]
