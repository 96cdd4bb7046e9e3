"""Finding models and datasets by name."""

import subprocess
import sys

import pytest

from data.base_dataset import BaseDataset
from data.unaligned_dataset import UnalignedDataset
from models.base_model import BaseModel
from models.cycle_gan_model import CycleGANModel
from util import registry
from util.registry import choices, find_class


@pytest.mark.parametrize(("package", "base"), [("models", BaseModel), ("data", BaseDataset)])
def test_every_choice_is_a_class(package, base):
    names = choices(package)
    assert names == sorted(names) and "template" in names and "base" not in names
    for name in names:
        assert issubclass(find_class(package, name), base)


def test_names_ignore_underscores_and_capitals():
    assert find_class("models", "cycle_gan") is CycleGANModel
    assert find_class("data", "unaligned") is UnalignedDataset


def test_choices_import_nothing():
    code = "import sys; from util.registry import choices; assert choices('models'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=registry.__file__.rsplit("/util/", 1)[0])
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["cyclegan", "Cycle_GAN", "base", "", "../train", "cycle_gan_model"])
def test_an_unknown_name_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"choose from .*cycle_gan, cycle_gan_attn, ") as caught:
        find_class("models", name)
    assert repr(name) in str(caught.value)


def test_a_near_miss_is_offered():
    with pytest.raises(ValueError, match=r"did you mean unaligned\?"):
        find_class("data", "unalligned")


def test_what_only_upstream_has_is_explained(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "two_dataset.py").write_text("from data.base_dataset import BaseDataset, get_transform\n")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules["data"], "__path__", [str(tmp_path / "data")])
    with pytest.raises(
        ValueError, match=r"data/two_dataset\.py: cannot import name 'get_transform' .*docs/migrating\.md"
    ):
        find_class("data", "two")


def test_a_file_without_its_class_is_named(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "lonely_model.py").write_text("from models.cycle_gan_model import CycleGANModel\n")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules["models"], "__path__", [str(tmp_path / "models")])
    with pytest.raises(ValueError, match=r"lonely_model\.py has no class 'lonelymodel'"):
        find_class("models", "lonely")
