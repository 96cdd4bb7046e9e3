"""Datasets and models written for upstream: the examples of docs/migrating.md, and messages for those not moved."""

import re
import shutil

import pytest

from data import create_dataset
from data.base_dataset import BaseDataset
from data.image_folder import DataError
from tests.test_cli import ROOT, TINY, script
from tests.test_data import opt_train


def test_the_examples_run(tiny_data, tmp_path, monkeypatch):
    """In a copy of the code, since a dataset is found by its file."""
    for folder in ("data", "models", "options", "util", "training", "inference", "display"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "test.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "datasets" / "chart").mkdir(parents=True)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "migrating.md").read_text(), re.DOTALL)
    for path, example in zip(("data/two_dataset.py", "models/two_model.py"), examples, strict=True):
        (tmp_path / path).write_text(example)
    monkeypatch.setattr("tests.test_cli.ROOT", tmp_path)
    flags = ["--dataroot", tiny_data, "--model", "two", "--name", "two", *TINY, "--n_epochs_decay", "0"]
    done = script("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0 and " L1: " in done.stdout, done.stderr
    done = script("test.py", "--name", "two", cwd=tmp_path)
    assert done.returncode == 0 and "5 of 5 images made" in done.stdout, done.stderr


def test_an_index_in_place_of_epoch_and_index_is_explained(tiny_data, monkeypatch):
    class Upstreams(BaseDataset):
        def __getitem__(self, index):
            return {"A": index % 2}

    monkeypatch.setattr("data.find_class", lambda *_: Upstreams)
    with pytest.raises(
        DataError, match=r"Upstreams\.__getitem__ takes an `index`, but samples are .* \(epoch, index\)\. docs"
    ):
        create_dataset(opt_train(tiny_data))


def test_an_error_of_a_sample_is_not_explained_away(tiny_data, monkeypatch):
    class Faulty(BaseDataset):
        def __init__(self, opt):
            super().__init__(opt)
            self.A_paths = ["a"]

        def __getitem__(self, at):
            return at + ""

    monkeypatch.setattr("data.find_class", lambda *_: Faulty)
    with pytest.raises(TypeError, match="can only concatenate tuple"):
        next(iter(create_dataset(opt_train(tiny_data))))


def test_paths_are_a_list(tiny_data, monkeypatch):
    class Paths(BaseDataset):
        def __init__(self, opt):
            super().__init__(opt)
            self.A_paths = paths

        def __getitem__(self, at):
            return {}

    monkeypatch.setattr("data.find_class", lambda *_: Paths)
    paths = [str(path) for path in tiny_data.glob("trainA/*")]
    assert sorted(create_dataset(opt_train(tiny_data)).dataset.A_paths) == sorted(tiny_data.glob("trainA/*"))
    paths = paths[0]
    with pytest.raises(DataError, match=r"A_paths of Paths has to be a list of the paths of its files. docs/migrating"):
        create_dataset(opt_train(tiny_data))
