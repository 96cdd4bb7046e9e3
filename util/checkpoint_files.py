"""The files of a checkpoint: their names, and how to find and read those that belong together.

A checkpoint is `{label}_net_{network}.pth` for each network and `{label}_state.pth`, which lists the digests of the
others. Files whose process was killed before it renamed them still have temporary names.
"""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

WEIGHTS = "{label}_net_{network}.pth"
STATE = "{label}_state.pth"
CONVERT = "python -m scripts.convert IN OUT"
PAGE = "is a web page, not the file it shows: download the file itself."
# what files that are no weights begin with, in small letters, and what to do about them
NO_WEIGHTS: dict[tuple[bytes, ...], str] = {
    (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script"): PAGE,
    (b"version https://git-lfs",): "is a Git LFS pointer: download the file itself, for example with git lfs pull.",
    (b"\x89hdf",): "is an HDF5 file, as Keras writes them: only weights of PyTorch and safetensors can be read.",
    (b"\x1f\x8b", b"7z\xbc\xaf", b"rar!", b"bzh", b"\xfd7zxz"): "is an archive: extract it, and name a file in it.",
    (b"\x89png", b"\xff\xd8\xff", b"gif8", b"%pdf", b'{"error', b'{"message'): (
        "is no file of weights, but an image, a document or a message: name the file itself."
    ),
}
FOR_OTHERS = {".onnx": "an ONNX file", ".pt2": "a torch.export file"}
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


class Inert:
    """Stands for an object in a file whose class is not loaded: it keeps the state of the object and does nothing."""

    def __init__(self, *arguments: object):
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def read_tensors(path: Path, *, objects: bool = False) -> dict[str, Any]:
    """The dict in a file of plain tensors and values, PyTorch's or safetensors; nothing in it is executed.

    Args:
        objects: accept Python objects in the file. Whole networks become dicts of their weights, others None.

    Raises:
        ValueError: the file is missing, damaged, or holds anything else.
    """
    try:
        if reason := what_instead(path):
            raise ValueError(f"{path} {reason}")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if objects and is_zip(path) else []
        with torch.serialization.safe_globals([(Inert, name) for name in unknown]):
            content = without_objects(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder: name one of the files in it") from error
    except ValueError:
        raise
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a damaged file
        cause = error.__context__ or error  # torch wraps its reason in the advice to load the file unsafely
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        if (found := re.search(r"(?:GLOBAL|class|function) (\w[\w.]*\.\w+)", reason)) and not objects:
            raise ValueError(
                f"{path} holds Python objects ({found[1]}), which are not loaded, since that can execute code. Save "
                f"the state_dict of the network alone, or extract it: {CONVERT}"
            ) from error
        raise ValueError(
            f"{path} is not a readable checkpoint of plain tensors, so nothing in it was executed: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict of tensors")
    return content


def what_instead(path: Path) -> str:
    """What a file is that cannot hold weights, by content or suffix, with the remedy; empty if it may hold some."""
    with path.open("rb") as file:
        start = file.read(512)
    if kind := FOR_OTHERS.get(path.suffix):
        return (
            f"is {kind}, for other programs: name the run, or the file that scripts.export --format safetensors writes."
        )
    for beginnings, what in NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(beginnings):
            return what
    if not start:
        return "is empty: the download or the copy did not finish. Get the file again."
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
        if "data.pkl" not in names:
            return "is an archive without weights of PyTorch: extract it, and name a file in it."
        if any(name.startswith("code/") for name in names):
            return "is a TorchScript module: name the file of its torch.jit.load(FILE).state_dict() instead."
    return ""


def is_zip(path: Path) -> bool:
    """Whether the file is a complete zip archive, as PyTorch's files are since version 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4" and zipfile.is_zipfile(file)


def without_objects(content: Any) -> Any:
    """`content` with networks in place as dicts of their weights, and None for all other `Inert` objects."""
    if isinstance(content, Inert):
        state = content.state
        if not (isinstance(state, Mapping) and "_parameters" in state and "_modules" in state):
            return None
        passing = state.get("_non_persistent_buffers_set", ())
        own = {**state["_parameters"], **{k: v for k, v in state["_buffers"].items() if k not in passing}}
        weights = {name: tensor.detach() for name, tensor in own.items() if tensor is not None}
        for child, module in state["_modules"].items():
            weights |= {f"{child}.{name}": tensor for name, tensor in (without_objects(module) or {}).items()}
        return weights
    if isinstance(content, Mapping):
        return {key: without_objects(value) for key, value in content.items()}
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
