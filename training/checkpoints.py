"""Write the checkpoints of a run such that there is a complete one whenever the process is killed."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.finite import NotFiniteError
from util.checkpoint_files import (
    BEST,
    OLD,
    STATE,
    WEIGHTS,
    complete_checkpoint,
    file_digests,
    has_digest,
    read_tensors,
    temporary,
)

LOCK = "train.lock"


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the lock of the run in `run_dir`. The same process may enter it again; a killed process releases it.

    Raises:
        ValueError: another process holds the lock.
        OSError: the folder is missing or not writable.
    """
    from filelock import FileLock, Timeout  # slow to import, and --help does without

    lock = FileLock(run_dir / LOCK, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{run_dir} is locked by another training process: wait for it or choose another --name"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def removed_if_unused(run_dir: Path) -> Iterator[None]:
    """If an error ends the block before anything was saved into a new `run_dir`, remove the folder."""
    existed = run_dir.exists()
    try:
        yield
    except BaseException:
        if not existed and [path.name for path in run_dir.glob("*")] == [LOCK]:
            (run_dir / LOCK).unlink()
            run_dir.rmdir()
        raise


def save_checkpoint(model: nn.Module, run_dir: Path, label: str, state: dict[str, Any]) -> None:
    """Write `{label}_net_{network}.pth` for every child of `model`, and `{label}_state.pth`, into `run_dir`.

    All files are written under temporary names before the first is renamed, so `complete_checkpoint` finds the old
    checkpoint or the new one whenever the process ends. Files of averaged networks from an earlier run of this name are
    removed.

    Raises:
        NotFiniteError: weights are not finite; the previous checkpoint is unchanged.
        OSError: the disk is full or not writable; the previous checkpoint is unchanged.
    """
    finish_checkpoint(run_dir, label)
    digests: dict[str, str] = {}
    state_path = run_dir / STATE.format(label=label)
    try:
        for name, net in model.named_children():
            weights = {key: value.cpu() for key, value in net.state_dict().items()}
            if not all(value.isfinite().all() for value in weights.values()):
                raise NotFiniteError(f"{name} has weights that are not finite: the checkpoint is not saved")
            path = run_dir / WEIGHTS.format(label=label, network=name.removeprefix("net"))
            digests[path.name] = _write(path, weights)
        _write(state_path, {"files": digests, **state})
    except NotFiniteError:
        _discard(run_dir, label)
        raise
    except OSError as error:
        _discard(run_dir, label)
        cause = error.strerror or error
        raise OSError(error.errno, f"{cause}; the previous checkpoint is unchanged", str(run_dir)) from error
    _rename(run_dir, label, {name: temporary(run_dir / name) for name in (*digests, state_path.name)})


def _discard(run_dir: Path, label: str) -> None:
    """Remove the temporary files of a failed checkpoint."""
    for path in run_dir.glob(f"{label}_*.pth.tmp"):
        path.unlink()


def _write(path: Path, content: dict[str, Any]) -> str:
    """Write `content` to the temporary file of `path` and flush it to the disk. Returns its SHA-256 digest."""
    buffer = io.BytesIO()  # on a full disk, torch.save raises an error that does not name the cause
    torch.save(content, buffer)
    with temporary(path).open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def finish_checkpoint(run_dir: Path, label: str) -> None:
    """Rename the files of the newest complete checkpoint, if its process was killed before that."""
    if temporary(run_dir / STATE.format(label=label)).is_file():
        _rename(run_dir, label, complete_checkpoint(run_dir, label))


def replaced_checkpoint(run_dir: Path) -> dict[str, Path]:
    """The latest checkpoint in `run_dir`, if a new run of this name has to keep it: file name -> current path.

    Empty if it is from before the first step or has seen fewer images than the one kept as `old`. So a run survives if
    it is started over twice by mistake.
    """
    images = {}
    for label in ("latest", OLD):
        files = complete_checkpoint(run_dir, label)
        state = files.get(STATE.format(label=label))
        images[label] = read_tensors(state).get("total_images", 0) if state else -1
    files = complete_checkpoint(run_dir, "latest") or {path.name: path for path in run_dir.glob("latest_net_*.pth")}
    return {} if images["latest"] == 0 or images[OLD] > images["latest"] else files


def keep_as_old(run_dir: Path) -> None:
    """Keep the `replaced_checkpoint` in `run_dir` under the label `old`, before a new run overwrites it."""
    if files := replaced_checkpoint(run_dir):
        for path in run_dir.glob(f"{OLD}_*.pth*"):
            path.unlink()
        for name, path in files.items():  # the state comes last
            _link(path, run_dir / f"{OLD}{name.removeprefix('latest')}")


def keep_best_as_old(run_dir: Path) -> None:
    """Keep the best checkpoint in `run_dir` under the label `old_best`: a new run has none yet."""
    finish_checkpoint(run_dir, BEST)
    for path in sorted(run_dir.glob(f"{BEST}_*.pth"), reverse=True):  # the state, which makes it complete, first
        path.replace(path.with_name(f"{OLD}_{path.name}"))


def _link(path: Path, to: Path) -> None:
    """Hard-link a file, or copy it where the file system has no links."""
    try:
        to.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, to)


def read_state(run_dir: Path, label: str) -> dict[str, Any] | None:
    """Read the state of the newest complete checkpoint; None if there is no state file. Changes no file.

    Raises:
        ValueError: the state is damaged, or the weights are not those it was saved with.
    """
    path = run_dir / STATE.format(label=label)
    files = complete_checkpoint(run_dir, label)
    try:
        state = read_tensors(files.get(path.name, path))
    except ValueError:
        if not path.is_file():
            return None
        state = read_tensors(path)  # a running process may have renamed the files since they were listed
    if not files:
        digests = file_digests(state, label)
        changed = [name for name, digest in digests.items() if not has_digest(run_dir / name, digest)]
        raise ValueError(
            f"{', '.join(changed)} in {run_dir} differs from what {path.name} was saved with: it is damaged or "
            f"replaced. Choose another checkpoint, or remove {path.name} to resume from the weights alone"
        )
    return state


def _rename(run_dir: Path, label: str, files: Mapping[str, Path]) -> None:
    """Rename the files of a checkpoint, the state last, and first remove averaged networks that are not part of it."""
    if files:
        for path in run_dir.glob(WEIGHTS.format(label=label, network="*_ema")):
            if path.name not in files:
                path.unlink()
    for name, path in files.items():
        path.replace(run_dir / name)
