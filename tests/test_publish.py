"""scripts.publish, and generators from the cache of the Hugging Face Hub."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from PIL import Image

import test as testing
from inference import Translator
from inference.export import read_notes
from scripts import publish
from tests.conftest import draw_shapes
from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT, train
from tests.test_data_depth import DEEP, write_domains


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A short run from B to A."""
    flags = ["--model", "cycle_gan_attn", "--direction", "BtoA", "--spectral_norm_G", "--lr", "0.01", "--no_html"]
    short = ["--n_epochs_decay", "0", "--max_dataset_size", "1"]
    return train(tmp_path_factory.mktemp("runs"), "--dataroot", tiny_data, *flags, *short)


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    """The run with the figures and images of test.py, as scripts.publish writes it."""
    folder = tmp_path_factory.mktemp("published")
    place = ["--checkpoints_dir", str(run.parent), "--name", "run"]
    assert testing.main([*place, "--results_dir", str(folder / "results"), "--metrics", "l1,ssim"]) == 0
    results = folder / "results" / "run" / "test_latest"
    flags = ["--results", str(results), "--about", "shapes to shapes: really", "--license", "cc-by-4.0"]
    assert publish.main([*place, *flags, str(folder / "shapes")]) == 0
    return folder / "shapes"


def python(code, *argv, cwd):
    """What a fresh Python prints that cannot reach the Hub, and has its cache in `cwd`."""
    env = ONE_THREAD | {"HF_HOME": str(cwd), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill_cache(home, folder, revision):
    """Lay out the files of `folder` as huggingface_hub does after it downloaded them from me/shapes."""
    repository, commit = home / "hub" / "models--me--shapes", hashlib.sha1(b"commit").hexdigest()
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (repository / name).mkdir(parents=True)
    for path in folder.iterdir():
        content = path.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        snapshot = repository / "snapshots" / commit
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    for name in ("main", revision):
        (repository / "refs" / name).write_text(commit)


def test_a_published_generator_gives_the_same_pixels_from_the_cache(run, published, tmp_path):
    fill_cache(tmp_path, published, "v1")
    draw_shapes("photo", (45, 38)).save(tmp_path / "photo.png")
    code = """
import sys
from PIL import Image
from inference import Translator
from scripts import translate
for number, address in enumerate(sys.argv[1:]):
    try:
        Translator.load(address, device="cpu")(Image.open("photo.png")).save(f"{number}.png")
    except ValueError as error:
        print(error)
translate.main(["photo.png", "script.png", "--weights", sys.argv[1], "--device", "cpu"])
"""
    good = ["hf://me/shapes", "hf://me/shapes@v1", "hf://me/shapes/model.safetensors"]
    bad = ["hf://me/shapes@v2", "hf://me/shapes/other.safetensors", "hf://you/shapes", "hf://shapes"]
    *errors, _ = python(code, *good, *bad, cwd=tmp_path).splitlines()
    expected = Translator.load(run, device="cpu")(draw_shapes("photo", (45, 38)))
    for name in ("0", "1", "2", "script"):
        with Image.open(tmp_path / f"{name}.png") as made:
            assert made.tobytes() == expected.tobytes(), name
    assert len(errors) == len(bad)
    for address, error in zip(bad, errors, strict=True):
        assert error.startswith(f"{address}: ")
    assert all("is not in the local cache, and the Hugging Face Hub cannot be reached" in error for error in errors[:3])


def test_the_card_says_what_the_generator_is(run, published):
    card = ModelCard.load(published / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "attention-cyclegan")
    assert card.data.pipeline_tag == "image-to-image"
    assert "Translates shapes to shapes: really, in any size." in card.text
    assert 'Translator.load("hf://OWNER/shapes")' in card.text
    assert re.search(r"Flags of `train.py`: `.*spectral_norm_G=True", card.text) and str(run.parent) not in card.text
    assert re.search(r"Test: L1 \(0\.\.255\) [\d.]+, SSIM -?[\d.]+; ", card.text)
    shown = re.findall(r"!\[\w+\]\(([^)]+)\)", card.text)
    assert len(shown) == 8
    assert {path.name for path in published.iterdir()} == {"config.json", "model.safetensors", "README.md", *shown}
    notes = json.loads((published / "config.json").read_text())
    assert notes == read_notes(published / "model.safetensors")
    assert notes["network"]["attn_G"] == "block3" and not notes["network"]["spectral_norm_G"], "its weights are plain"
    assert (notes["domains"], notes["stride"]) == (["B", "A"], 4)


def test_formats_of_domains_are_published(tmp_path):
    data = write_domains(tmp_path / "data")
    run = train(tmp_path, "--dataroot", data, *DEEP, "--n_epochs_decay", "0", "--netD", "pixel", "--no_html")
    for direction in ("AtoB", "BtoA"):
        place = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--direction", direction]
        images = ["--images", str(data / f"train{direction[0]}")]
        assert publish.main([*place, *images, str(tmp_path / direction)]) == 0
        made = Translator.load(tmp_path / direction / "model.safetensors", device="cpu")
        expected = Translator.load(run, direction=direction, device="cpu")
        for attribute in ("input_nc", "value_range", "output_format", "output_range", "domains"):
            assert getattr(made, attribute) == getattr(expected, attribute), attribute
        assert "license" not in (tmp_path / direction / "README.md").read_text()


def test_mistakes_are_named_before_anything_is_written(run, tmp_path, monkeypatch):
    place = ["--checkpoints_dir", str(run.parent), "--name", "run"]
    with pytest.raises(ValueError, match="is not an empty folder"):
        publish.main([*place, str(run)])
    code = """
import os, sys
from scripts import publish
for token in ("", "hf_token"):
    os.environ["HF_TOKEN"] = token
    try:
        publish.main([*sys.argv[1:], "--push", "me/shapes", "out"])
    except ValueError as error:
        print(error)
"""
    missing, unreachable = python(code, *place, cwd=tmp_path).splitlines()
    assert missing == "--push me/shapes needs a token: run hf auth login, or set HF_TOKEN"
    assert unreachable.startswith("--push me/shapes: the Hugging Face Hub cannot be reached (")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    for command in (
        lambda: publish.main([*place, "--push", "me/shapes", str(tmp_path / "out")]),
        lambda: Translator.load("hf://me/shapes"),
    ):
        with pytest.raises(ValueError, match=r'huggingface_hub is not installed: pip install "\.\[hub\]"'):
            command()
    assert not (tmp_path / "out").exists()
