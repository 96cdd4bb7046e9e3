"""The files of a checkpoint: their names, and how to find and read those that belong together.

A checkpoint is `{label}_net_{network}.pth` for each network and `{label}_state.pth`, which lists the digests of the
others. Files whose process was killed before it renamed them still have temporary names.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

WEIGHTS = "{label}_net_{network}.pth"
STATE = "{label}_state.pth"
BEST = "best"  # label of the checkpoint with the best figure so far
OLD = "old"  # label of the last checkpoint of a run that a new run of the same name has replaced


def checkpoint_label(epoch: str, load_iter: int) -> str:
    """The label of the checkpoint that --epoch or --load_iter names: latest, 20, iter_5000."""
    return f"iter_{load_iter}" if load_iter else epoch


def temporary(path: Path) -> Path:
    """The name of a checkpoint's file until all files of the checkpoint are complete."""
    return path.with_name(path.name + ".tmp")


def complete_checkpoint(run_dir: Path, label: str) -> dict[str, Path]:
    """The newest complete checkpoint of `label`: file name -> current path, the state last. Empty if there is none."""
    state = run_dir / STATE.format(label=label)
    for path in (temporary(state), state):
        try:
            digests = file_digests(read_tensors(path), label)
        except ValueError:  # missing, or truncated
            continue
        files = {
            name: place
            for name, digest in digests.items()
            for place in (temporary(run_dir / name), run_dir / name)
            if has_digest(place, digest)
        }
        if len(files) == len(digests):
            return files | {state.name: path}
    return {}


def read_tensors(path: Path) -> dict[str, Any]:
    """The dict in a file of plain tensors and values, PyTorch's or safetensors; nothing in it is executed.

    Raises:
        ValueError: the file is missing, damaged, or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a damaged file
        cause = error.__context__ or error  # torch wraps its reason in the advice to load the file unsafely
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise ValueError(
            f"{path} is not a readable checkpoint of plain tensors, so nothing in it was executed: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict of tensors")
    return content


def file_digests(state: Mapping[str, Any], label: str) -> dict[str, str]:
    """The SHA-256 digests that `state` lists, by the names that the files have under `label`."""
    files = state.get("files", {})
    return {f"{label}_net_{name.partition('_net_')[2]}": digest for name, digest in files.items()}


def has_digest(path: Path, digest: str) -> bool:
    """Whether the file exists and has this SHA-256 digest."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (FileNotFoundError, IsADirectoryError):  # no check in advance: the file may be renamed in between
        return False
