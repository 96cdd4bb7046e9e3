"""Flags that change neither networks nor losses: which images, which weights, what is shown."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

import test as testing
from data import create_dataset
from models import create_model
from options.train_options import TrainOptions
from tests.test_cli import TINY, logged_losses, train


@pytest.fixture(scope="module", params=["AtoB", "BtoA"])
def run(request, tiny_data, tmp_path_factory):
    """The folder of a run trained in each direction, which saved often."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["--direction", request.param, "--save_by_iter", "--save_latest_freq", "2"]
    return train(folder, "--dataroot", tiny_data, *flags)


def translate(run_dir: Path, *flags: str) -> Path:
    """Test a run of tests/test_cli.py; returns the folder of images."""
    results = run_dir.parent / "results"
    shutil.rmtree(results, ignore_errors=True)
    places = ["--checkpoints_dir", str(run_dir.parent), "--name", "run", "--results_dir", str(results)]
    assert testing.main([*places, "--device", "cpu", *flags]) == 0
    (page,) = results.glob("run/*/index.html")
    return page.parent / "images"


def images_of(folder: Path, label: str) -> list[Image.Image]:
    """All images with this label."""
    images = []
    for path in sorted(folder.glob(f"*_{label}.png")):
        with Image.open(path) as image:
            images.append(image.copy())
    return images


def test_direction_is_that_of_data_and_networks(run):
    """G_A's file holds the generator of the direction that the run was trained in."""
    trained, other = ("AtoB", "BtoA") if "AtoB" in str(run) else ("BtoA", "AtoB")
    seen = {label: images_of(translate(run), label) for label in ("real_A", "fake_B", "real_B", "fake_A")}
    assert len({image.tobytes() for image in itertools.chain(*seen.values())}) == 20
    turned = translate(run, "--direction", other)
    assert images_of(turned, "real_A") == seen["real_B"] and images_of(turned, "fake_B") == seen["fake_A"]
    for direction, real, fake in ((trained, "real_A", "fake_B"), (other, "real_B", "fake_A")):
        single = translate(run, "--model", "test", "--direction", direction)
        assert images_of(single, "real") == seen[real] and images_of(single, "fake") == seen[fake]


def test_phase_chooses_the_images(run, tiny_data):
    shown = translate(run, "--phase", "train")
    assert shown.parent.name == "train_latest"
    domain = "A" if "AtoB" in str(run) else "B"
    with Image.open(tiny_data / f"train{domain}" / "0.png") as image:
        by_pillow = image.resize((32, 32), Image.Resampling.BICUBIC)
    difference = ImageChops.difference(images_of(shown, "real_A")[0], by_pillow)
    assert all(high <= 1 for _, high in difference.getextrema())


def test_save_by_iter_keeps_what_load_iter_loads(run, capsys):
    images = {int(path.name.split("_")[1]) for path in run.glob("iter_*_net_G_A.pth")}
    assert images == {2, 4, 6, 8, 10}
    latest = images_of(translate(run), "fake_B")
    capsys.readouterr()
    folder = translate(run, "--load_iter", "4")
    assert "iter_4_net_G_A.pth" in capsys.readouterr().out
    assert folder.parent.name == "test_iter_4"
    assert len(images_of(folder, "fake_B")) == 5 and images_of(folder, "fake_B") != latest


def test_training_resumes_from_load_iter(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    train(tmp_path, "--continue_train", "--load_iter", "6")
    assert "resuming run in epoch 2 after 6 images" in capsys.readouterr().out
    assert logged_losses(tmp_path / "run")[-4:] == logged_losses(run)[-4:]


@pytest.mark.parametrize(("ratio", "size"), [("2", (64, 32)), ("0.5", (32, 64)), ("1", (32, 32))])
def test_aspect_ratio_stretches_results(run, ratio, size):
    folder = translate(run, "--aspect_ratio", ratio, "--num_test", "1")
    assert {image.size for label in ("real_A", "fake_B") for image in images_of(folder, label)} == {size}


def test_verbose_prints_the_layers(run, tiny_data, tmp_path, capsys):
    for flags in ([], ["--verbose"]):
        capsys.readouterr()
        translate(run, "--num_test", "1", *flags)
        assert ("Conv2d(3, 8" in capsys.readouterr().out) == bool(flags)
        train(tmp_path, "--dataroot", tiny_data, "--max_dataset_size", "1", *flags)
        assert ("Conv2d(3, 8" in capsys.readouterr().out) == bool(flags)


def test_serial_batches_keep_the_order_in_training(tiny_data):
    loader = create_dataset(TrainOptions().parse([*TINY, "--dataroot", str(tiny_data), "--serial_batches"]))
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        for domain in "AB":
            shown = [Path(path).name for batch in loader for path in batch[f"{domain}_paths"]]
            assert shown == ["0.png", "1.png", "2.png", "3.jpg", "4.jpg"]


@pytest.mark.parametrize(
    ("flags", "repeatable"),
    [("--norm batch --no_dropout", True), ("--norm syncbatch --no_dropout", True), ("--norm instance", False)],
)
def test_eval_takes_running_statistics_and_drops_nothing(tiny_data, tmp_path, flags, repeatable):
    run_dir = train(tmp_path, "--dataroot", tiny_data, "--model", "template", *flags.split())
    seeds = [], [], ["--seed", "1"]
    as_trained, again, other = (images_of(translate(run_dir, *seed), "fake_B") for seed in seeds)
    assert as_trained == again
    assert (as_trained == other) == repeatable, "dropout is noise"
    evaluated, again = (images_of(translate(run_dir, "--eval"), "fake_B") for _ in range(2))
    assert evaluated == again != as_trained


def test_syncbatch_is_batch_norm_in_one_process():
    flags = ["--netG", "resnet_6blocks", "--ngf", "8", "--ndf", "8", "--norm"]
    outputs, keys = [], []
    for norm in ("batch", "syncbatch"):
        torch.manual_seed(0)
        model = create_model(TrainOptions().parse([*flags, norm]))
        outputs.append(model.netG_A(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)))
        keys.append(list(model.state_dict()))
    assert torch.equal(*outputs) and keys[0] == keys[1]
