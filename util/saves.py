"""The saves of a run: files that belong together, found whole whenever the process that wrote them was killed."""

import errno
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from util.finite import NotFiniteError

WEIGHTS = "{label}_net_{network}.pth"
STATE = "{label}_state.pth"
LOCK = "train.lock"
OLD = "old"  # label of the last save of a run that another one of its name has replaced


@contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Inside, no other process can be so too: two that trained one run would mix their saves.

    It may be entered again in the same process. A process that is killed leaves nothing behind that locks others out.

    Raises:
        ValueError: another process is inside.
        OSError: the folder is missing or cannot be written into.
    """
    with (run_dir / LOCK).open("a") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which loading processes, forks of this one, lack
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    message = f"another process is training {run_dir}: let it end, or choose another --name"
                    raise ValueError(message) from error
                print(f"files in {run_dir} cannot be locked ({error}): take care to train this run once only")
        yield


def save_checkpoint(model: nn.Module, run_dir: Path, label: str, state: dict[str, Any]) -> None:
    """Write `{label}_net_{network}.pth` for every child of `model`, and `{label}_state.pth`, into run_dir.

    The state lists digests of the other files, so that a reader can tell which belong together. All are written in
    full under temporary names before the first is renamed: whenever the process ends, `whole_save` finds the old save
    or the new one. Averaged networks of an earlier run of this name are removed: they would be taken for this run's.

    Raises:
        NotFiniteError: weights are not finite; what was saved before stays.
        OSError: the disk is full or cannot be written to; what was saved before stays.
    """
    finish_save(run_dir, label)
    digests: dict[str, str] = {}
    state_path = run_dir / STATE.format(label=label)
    try:
        for name, net in model.named_children():
            weights = {key: value.cpu() for key, value in net.state_dict().items()}
            if not all(value.isfinite().all() for value in weights.values()):
                raise NotFiniteError(f"{name} has weights that are not finite: nothing of them is saved")
            path = run_dir / WEIGHTS.format(label=label, network=name.removeprefix("net"))
            digests[path.name] = _write(path, weights)
        _write(state_path, {"files": digests, **state})
    except NotFiniteError:
        _discard(run_dir, label)
        raise
    except OSError as error:
        _discard(run_dir, label)
        cause = error.strerror or error
        raise OSError(error.errno, f"{cause}; the save before is as it was", str(run_dir)) from error
    _rename(run_dir, label, {name: temporary(run_dir / name) for name in (*digests, state_path.name)})


def _discard(run_dir: Path, label: str) -> None:
    """Remove the files of a save that failed: no room is kept by what is of no use."""
    for path in run_dir.glob(f"{label}_*.pth.tmp"):
        path.unlink()


def _write(path: Path, content: dict[str, Any]) -> str:
    """Write the file that is to become `path`, down to the disk; returns the digest of its bytes."""
    buffer = io.BytesIO()  # not straight into the file: a full disk would end in an error of torch that names no cause
    torch.save(content, buffer)
    with temporary(path).open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def whole_save(run_dir: Path, label: str) -> dict[str, Path]:
    """The newest save under `label` that is whole: the names of its files, the state last, and where they are.

    They are under temporary names still where the process that saved them ended too early. Empty if there is none.
    """
    state = run_dir / STATE.format(label=label)
    for path in (temporary(state), state):
        try:
            digests = _digests(read_file(path), label)
        except ValueError:  # missing, or cut off in the middle of writing
            continue
        files = {
            name: place
            for name, digest in digests.items()
            for place in (temporary(run_dir / name), run_dir / name)
            if _has_digest(place, digest)
        }
        if len(files) == len(digests):
            return files | {state.name: path}
    return {}


def finish_save(run_dir: Path, label: str) -> None:
    """Give the files of the newest whole save their names, if the process that saved them was killed before it did."""
    if temporary(run_dir / STATE.format(label=label)).is_file():
        _rename(run_dir, label, whole_save(run_dir, label))


def save_label(epoch: str, load_iter: int) -> str:
    """How the names of the files begin that --epoch or --load_iter ask for."""
    return f"iter_{load_iter}" if load_iter else epoch


def to_set_aside(run_dir: Path) -> dict[str, Path]:
    """Name -> place of the files of the last save in run_dir that a new run of this name should keep as `old`.

    None if it is of the very start of a run, or the `old` one has seen more images: who starts a run anew by mistake
    may do so twice.
    """
    images = {}
    for label in ("latest", OLD):
        files = whole_save(run_dir, label)
        state = files.get(STATE.format(label=label))
        images[label] = read_file(state).get("total_images", 0) if state else -1
    files = whole_save(run_dir, "latest") or {path.name: path for path in run_dir.glob("latest_net_*.pth")}
    return {} if images["latest"] == 0 or images[OLD] > images["latest"] else files


def set_aside(run_dir: Path) -> None:
    """Keep the last save in run_dir as `old`, before a new run of this name replaces it."""
    if files := to_set_aside(run_dir):
        for path in run_dir.glob(f"{OLD}_*.pth*"):
            path.unlink()
        for name, path in files.items():  # the state last
            _link(path, run_dir / f"{OLD}{name.removeprefix('latest')}")


def _link(path: Path, to: Path) -> None:
    """Let a file have another name too, or where that is not possible, a copy."""
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, to)


def read_state(run_dir: Path, label: str) -> dict[str, Any] | None:
    """The state of the newest whole save; None if none was saved. It changes no file: the next save does that.

    Raises:
        ValueError: the state is damaged, or the weights beside it are not those that it was saved with.
    """
    path = run_dir / STATE.format(label=label)
    files = whole_save(run_dir, label)
    try:
        state = read_file(files.get(path.name, path))
    except ValueError:
        if not path.is_file():
            return None
        state = read_file(path)  # by now: a run that goes on may give its files their names while others read them
    if not files:
        digests = _digests(state, label)
        changed = [name for name, digest in digests.items() if not _has_digest(run_dir / name, digest)]
        raise ValueError(
            f"{', '.join(changed)} in {run_dir} is not what {path.name} was saved with, but damaged or replaced: "
            f"choose another save by --epoch, or remove {path.name} to go on with the weights alone"
        )
    return state


def read_file(path: Path) -> dict[str, Any]:
    """The dict in a file of plain tensors and values; nothing in it is executed.

    Raises:
        ValueError: the file is missing, damaged, or holds anything else.
    """
    try:
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


def _rename(run_dir: Path, label: str, files: Mapping[str, Path]) -> None:
    """Give the files of a save their names, the state last, when averages that do not belong to it are gone."""
    if files:
        for path in run_dir.glob(WEIGHTS.format(label=label, network="*_ema")):
            if path.name not in files:
                path.unlink()
    for name, place in files.items():
        place.replace(run_dir / name)


def _digests(state: Mapping[str, Any], label: str) -> dict[str, str]:
    """What `state` lists, under the names that the files have where the save is called `label` by now."""
    files = state.get("files", {})
    return {f"{label}_net_{name.partition('_net_')[2]}": digest for name, digest in files.items()}


def _has_digest(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (FileNotFoundError, IsADirectoryError):  # asking first would not do: it may be renamed in between
        return False


def temporary(path: Path) -> Path:
    """What `path` is called until it is whole."""
    return path.with_name(path.name + ".tmp")
