"""Files that are replaced in one step: a reader, or a killed process, never sees half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a hidden path with the same suffix; it replaces `path` when the block ends, unless an error ends it.

    Each process has a path of its own, so several may write the same file: the last one wins.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_kept(source: Path, target: Path) -> None:
    """Raise ValueError if writing `target` would replace the file `source` that it is made from."""
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target} would replace the file that it is made from: choose another name")
