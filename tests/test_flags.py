"""Every flag that the code reads is declared, and every declared flag is read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from options.base_options import Options
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.registry import choices

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "train.py", ROOT / "test.py"]
ROOMS = ("display", "training", "inference", "models", "data", "options", "util")
SOURCES += [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def declared() -> set[str]:
    """The flags of both scripts, over all models and datasets."""
    flags: set[str] = set()
    for model in choices("models"):
        for mode in choices("data"):
            if mode == "noise" and model != "sagan":
                continue
            argv = ["--model", model, "--dataset_mode", mode, *([] if mode == "noise" else ["--dataroot", "."])]
            flags |= TestOptions().parse(argv).as_dict().keys()
            if model != "test" and mode != "noise":  # which are for test.py alone
                flags |= TrainOptions().parse(argv).as_dict().keys()
    return flags


def read() -> Iterator[tuple[str, str]]:
    """(flag, where) for every `opt.flag` and `self.opt.flag`, and every `flags["flag"]` in options."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Attribute(value=ast.Name(id="opt") | ast.Attribute(attr="opt"), attr=flag) if not hasattr(
                    Options, flag
                ):
                    yield flag, where
                case ast.Subscript(value=ast.Name(id="flags"), slice=ast.Constant(value=str(flag))):
                    yield flag, where


@pytest.fixture(scope="module")
def flags():
    return declared()


def test_every_flag_that_is_read_is_declared(flags):
    assert [f"opt.{flag} in {where}" for flag, where in read() if flag not in flags] == []


def test_every_declared_flag_is_read(flags):
    assert sorted(flags - {flag for flag, _ in read()}) == []
