"""Files that are replaced in one step."""

import os

import pytest

from util.files import atomic


def test_each_process_has_a_draft_of_its_own(tmp_path, monkeypatch):
    path = tmp_path / "cache.pth"
    with atomic(path) as draft:
        draft.write_text("half of")
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            with atomic(path) as whole:
                whole.write_text("the other process")
        assert path.read_text() == "the other process" and draft.read_text() == "half of"
        assert draft.name.startswith(".") and draft.suffix == ".pth"
    assert path.read_text() == "half of" and list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), atomic(path) as draft:
        draft.write_text("af")
        raise OSError("full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
