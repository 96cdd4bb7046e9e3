"""Both scripts from end to end, as processes and in this one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import test as testing
import train as training
from data.arrays import read_array
from tests.helpers import PATIENCE
from tests.test_data_depth import DEEP, write_domains
from util.registry import choices

ROOT = Path(__file__).parent.parent
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums of other parts differ in the last bit
TINY = [
    "--netG", "resnet_6blocks", "--ngf", "8", "--ndf", "8", "--load_size", "36", "--crop_size", "32", "--device", "cpu",
    "--n_epochs", "1", "--n_epochs_decay", "1", "--print_freq", "1", "--display_id", "0",
]  # fmt: skip


def script(name: str, *flags: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run train.py or test.py as a user would."""
    command = [sys.executable, str(ROOT / name), *map(str, flags)]
    return subprocess.run(
        command, cwd=cwd, env=ONE_THREAD, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def train(folder: Path, *flags: str | Path, status: int = 0) -> Path:
    """Train in this process; returns the folder of the run."""
    assert training.main(["--checkpoints_dir", str(folder), "--name", "run", *TINY, *map(str, flags)]) == status
    return folder / "run"


def logged_losses(run_dir: Path) -> list[str]:
    """The lines of loss_log.txt without their times."""
    lines = (run_dir / "loss_log.txt").read_text().splitlines()
    return [re.sub(r"time: .*?\)", ")", line) for line in lines if line.startswith("(")]


def test_train_and_test_as_processes(tiny_data, tmp_path):
    flags = ["--dataroot", tiny_data, "--name", "shapes", "--model", "cycle_gan_attn", *TINY]
    done = script("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "checkpoints" / "shapes"
    for name in ("G_A", "G_B", "D_A", "D_B"):
        weights = torch.load(run_dir / f"latest_net_{name}.pth", weights_only=True)
        assert all(type(weight) is torch.Tensor for weight in weights.values())
    assert len(logged_losses(run_dir)) == 10
    assert (run_dir / "web" / "images" / "epoch002_fake_B.png").is_file()
    assert (run_dir / "train_opt.txt").read_text().startswith("----------------- Options ---------------")

    done = script("test.py", "--name", "shapes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 images made" in done.stdout
    results = tmp_path / "results" / "shapes" / "test_latest"
    page = (results / "index.html").read_text()
    for path in tiny_data.glob("testA/*"):
        for label in ("real_A", "fake_B", "rec_A", "real_B", "fake_A", "rec_B"):
            assert (results / "images" / f"{path.stem}_{label}.png").is_file()
            assert f"images/{path.stem}_{label}.png" in page


@pytest.mark.parametrize("model", sorted(set(choices("models")) - {"test"}))
def test_every_model_trains_and_tests(model, tiny_data, paired_data, tmp_path):
    data = paired_data if model.startswith(("pix2pix", "colorization")) else tiny_data
    flags = ["--netG", "sagan"] if model == "sagan" else []
    train(tmp_path, "--dataroot", data, "--model", model, "--batch_size", "2", "--precision", "bf16", *flags)
    results = tmp_path / "results"
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(results)]
    assert testing.main([*places, "--num_test", "5"]) == 0
    label = {"sagan": "sample", "colorization": "fake_B_rgb"}.get(model, "fake_B")
    assert len(list(results.rglob(f"*_{label}.png"))) == 5


@pytest.mark.parametrize(("model", "fake", "real"), [("pix2pix", "fake_B", "real_B"),
    ("colorization", "fake_B_rgb", "real_B_rgb")])  # fmt: skip
def test_translations_of_pairs_are_scored(model, fake, real, paired_data, tmp_path):
    train(tmp_path, "--dataroot", paired_data, "--model", model)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main(places) == 0
    results = tmp_path / "results" / "run" / "test_latest"
    made, truth = ([load_image(results / "images" / f"{i}_{label}.png") for i in range(5)] for label in (fake, real))
    l1 = sum((a - b).abs().mean().item() for a, b in zip(made, truth, strict=True)) / 5
    shown = re.search(
        r"against the B of the same name</dt><dd>L1 ([\d.]+) of 255 · PSNR .* dB · SSIM -?0\.\d+",
        (results / "index.html").read_text(),
    )
    assert shown and float(shown[1]) == pytest.approx(l1, abs=0.5)


def load_image(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return F.pil_to_tensor(image).float()


def test_the_generator_of_pairs_translates_alone(tiny_data, paired_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", paired_data, "--model", "pix2pix")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir"]
    assert testing.main([*places, str(tmp_path / "pairs")]) == 0
    alone = ["--model", "test", "--dataroot", str(tiny_data)]
    assert testing.main([*places, str(tmp_path / "alone"), *alone]) == 0
    assert "latest_net_G.pth" in capsys.readouterr().out
    pairs, alone = (
        load_image(next(tmp_path.glob(pattern))) for pattern in ("pairs/**/0_real_A.png", "alone/**/0_real.png")
    )
    assert torch.equal(pairs, alone)
    with pytest.raises(ValueError, match="one direction only, that of its training: omit --direction"):
        testing.main([*places, str(tmp_path), "--direction", "BtoA"])


def test_results_show_where_a_unet_looks(paired_data, tmp_path):
    unet = ["--netG", "unet_128", "--crop_size", "128", "--load_size", "128", "--max_dataset_size", "1"]
    train(tmp_path, "--dataroot", paired_data, "--model", "pix2pix_attn", *unet)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main([*places, "--num_test", "1"]) == 0
    shown = next(tmp_path.glob("results/**/0_attention.js")).read_text()
    assert re.findall(r'"network":"(\w+)","stage":"(\w+)","over":"(\w+)"', shown) == [
        ("G", "down3", "real_A"), ("D", "layer3", "fake_B"),
    ]  # fmt: skip


def test_one_direction_takes_the_right_generator(tiny_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", tiny_data)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    shown = {}
    for direction in ("AtoB", "BtoA"):
        capsys.readouterr()
        assert testing.main([*places, "--model", "test", "--direction", direction, "--num_test", "2"]) == 0
        shown[direction] = capsys.readouterr().out
    assert "latest_net_G_A.pth" in shown["AtoB"]
    assert "latest_net_G_B.pth" in shown["BtoA"]
    assert "2 of 5 images made, limited by --num_test 2" in shown["BtoA"]
    assert "files of an earlier test" not in shown["BtoA"]
    assert testing.main([*places, "--model", "test", "--num_test", "1"]) == 0
    assert "images still has 2 files of an earlier test, which the page does not show" in capsys.readouterr().out
    assert testing.main([*places, "--model", "test", "--model_suffix", "_A"]) == 0


def test_a_run_trained_from_b_to_a_is_tested_from_b_to_a(tiny_data, tmp_path, capsys):
    train(tmp_path, "--dataroot", tiny_data, "--direction", "BtoA")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main([*places, "--model", "test"]) == 0
    assert "latest_net_G_A.pth" in capsys.readouterr().out
    assert testing.main([*places, "--direction", "AtoB"]) == 0
    assert re.search(r"netG_A is \S*latest_net_G_B.pth", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("train.py", "--dataroot nowhere", "Expected:"),
        ("train.py", "--lamda_A 10", "did you mean --lambda_A?"),
        ("train.py", "--model cycle_gam", "did you mean cycle_gan?"),
        ("train.py", "--model cycle_gan_attn --attn_G blok3", "choose from down1, down2, block1"),
        ("train.py", "--crop_size 50", "multiples of 4"),
        ("train.py", "--continue_train", "no run 'experiment_name'"),
        ("test.py", "--name nothing", "no run 'nothing'"),
        ("test.py", "--num_test 0", "--num_test"),
        ("train.py", "--dataset_mode single", "choose another --dataset_mode"),
        (
            "train.py",
            "--gpu_ids -1 --device cuda",
            "omit one of them" if torch.cuda.is_available() else "--device cpu",
        ),
    ],
)
def test_mistakes_are_answered_without_a_traceback(name, flags, message, tmp_path):
    done = script(name, *flags.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_image_is_named(tiny_data, tmp_path):
    for side in "AB":
        folder = tmp_path / f"train{side}"
        folder.mkdir()
        (folder / "good.png").write_bytes((tiny_data / f"train{side}" / "0.png").read_bytes())
    (tmp_path / "trainA" / "bad.png").write_bytes((tiny_data / "trainA" / "0.png").read_bytes()[:60])
    done = script("train.py", "--dataroot", tmp_path, *TINY, "--num_threads", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "bad.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_that_do_not_fit_are_named(tiny_data, tmp_path, capsys):
    run_dir = train(tmp_path, "--dataroot", tiny_data)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    with pytest.raises(
        ValueError, match=r"latest_net_G_A.pth was made for another network.*ngf=8; the network has ngf=16"
    ):
        testing.main([*places, "--ngf", "16"])
    (run_dir / "latest_net_G_A.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"latest_net_G_A.pth is not a readable checkpoint"):
        testing.main(places)


def test_results_never_overwrite_each_other(tiny_data, tmp_path):
    train(tmp_path, "--dataroot", tiny_data)
    mixed = tmp_path / "mixed"
    for name in ("x/1.png", "y/1.png", "y/1.jpg", "y/1_2.png"):
        (mixed / name).parent.mkdir(parents=True, exist_ok=True)
        (mixed / name).write_bytes((tiny_data / "testA" / "1.png").read_bytes())
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main([*places, "--model", "test", "--dataroot", str(mixed)]) == 0
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    fakes = {path.relative_to(images).as_posix() for path in images.rglob("*_fake.png")}
    assert fakes == {"x/1_fake.png", "y/1_fake.png", "y/1_2_fake.png", "y/1_2_2_fake.png"}


def test_results_have_the_depth_of_the_files(tmp_path):
    for phase in ("train", "test"):
        write_domains(tmp_path / "data", phase)
    train(tmp_path, "--dataroot", tmp_path / "data", *DEEP)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main(places) == 0
    images = tmp_path / "results" / "run" / "test_latest" / "images"
    for label, dtype, channels in (("fake_B", "float32", 5), ("rec_A", "uint16", 1), ("fake_A", "uint16", 1)):
        array = read_array(images / f"0_{label}.tif")
        assert array.dtype == dtype and array.shape == (32, 32, channels)
        with Image.open(images / f"0_{label}.png") as view:
            assert view.mode == ("RGB" if channels == 5 else "L")
    assert testing.main([*places, "--model", "test"]) == 0
    assert read_array(images / "1_fake.tif").dtype == "float32", "the format of B"


def test_suffix_finds_the_same_run_again(tiny_data, tmp_path):
    suffix = ["--suffix", "{netG}_{ngf}"]
    train(tmp_path, "--dataroot", tiny_data, *suffix)
    assert (tmp_path / "run_resnet_6blocks_8" / "latest_state.pth").is_file()
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--netG", "resnet_6blocks", "--ngf", "8", *suffix]
    assert testing.main([*places, "--results_dir", str(tmp_path / "results")]) == 0


def test_statistics_of_old_instance_norms_are_left_out(tiny_data, tmp_path):
    run_dir = train(tmp_path, "--dataroot", tiny_data)
    for name in ("G_A", "G_B"):
        weights = torch.load(run_dir / f"latest_net_{name}.pth", weights_only=True)
        torch.save(weights | {"model.2.running_mean": torch.zeros(8)}, run_dir / f"latest_net_{name}.pth")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main(places) == 0


def test_latest_is_saved_when_the_flags_say(tiny_data, tmp_path, monkeypatch):
    """Not at the end of every epoch: a checkpoint of the default networks takes seconds."""
    saved: list[tuple[str, int]] = []

    def save_run(model, optimization, position, *arguments, **keywords):
        saved.append((arguments[2], position.total_images))
        return save(model, optimization, position, *arguments, **keywords)

    save = training.save_run
    monkeypatch.setattr(training, "save_run", save_run)
    flags = ["--n_epochs", "5", "--n_epochs_decay", "0", "--max_dataset_size", "1", "--save_epoch_freq", "2"]
    train(tmp_path, "--dataroot", tiny_data, *flags)
    assert saved == [("latest", 0), ("2", 2), ("latest", 2), ("4", 4), ("latest", 4), ("latest", 5)]


def test_a_run_refused_before_its_first_checkpoint_leaves_no_folder(tiny_data, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError(28, "No space left on device", str(tmp_path / "run"))

    monkeypatch.setattr(training, "save_run", fail)
    with pytest.raises(OSError, match="No space left on device"):
        train(tmp_path, "--dataroot", tiny_data)
    assert not (tmp_path / "run").exists()
