"""Upstream's flags: names, defaults and choices, what they do, and what they were called in 2017 and 2018."""

import itertools
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import test as testing
import train as training
from data import create_dataset
from models import create_model
from models.networks import DISCRIMINATORS, GENERATORS
from options import parser
from options.test_options import TestOptions
from options.train_options import TrainOptions
from tests.test_cli import TINY, logged_losses, train
from util.registry import choices

BASE = {
    "name": "experiment_name", "gpu_ids": "0", "checkpoints_dir": "./checkpoints", "model": "cycle_gan", "input_nc": 3,
    "output_nc": 3, "ngf": 64, "ndf": 64, "netD": "basic", "netG": "resnet_9blocks", "n_layers_D": 3,
    "norm": "instance", "init_type": "normal", "init_gain": 0.02, "no_dropout": False, "dataset_mode": "unaligned",
    "direction": "AtoB", "serial_batches": False, "num_threads": 4, "batch_size": 1, "load_size": 286,
    "crop_size": 256, "max_dataset_size": math.inf, "preprocess": "resize_and_crop", "no_flip": False,
    "display_winsize": 256, "epoch": "latest", "load_iter": 0, "verbose": False, "suffix": "", "use_wandb": False,
    "wandb_project_name": "CycleGAN-and-pix2pix",
}  # fmt: skip
TRAIN = BASE | {
    "display_freq": 400, "display_ncols": 4, "display_id": 1, "display_server": "http://localhost",
    "display_env": "main", "display_port": 8097, "update_html_freq": 1000, "print_freq": 100, "no_html": False,
    "save_latest_freq": 5000, "save_epoch_freq": 5, "save_by_iter": False, "continue_train": False, "epoch_count": 1,
    "phase": "train", "n_epochs": 100, "n_epochs_decay": 100, "beta1": 0.5, "lr": 0.0002, "gan_mode": "lsgan",
    "pool_size": 50, "lr_policy": "linear", "lr_decay_iters": 50,
}  # fmt: skip
TEST = BASE | {
    "results_dir": "./results/", "aspect_ratio": 1.0, "phase": "test", "eval": False, "num_test": 50,
    "load_size": 256,  # its crop_size
    "serial_batches": True, "no_flip": True,  # which its test.py sets whatever the flags say
}  # fmt: skip
Changes = tuple[dict[str, object], dict[str, object]]  # in both scripts; beside these, in training

CYCLE_GAN: Changes = {"no_dropout": True}, {"lambda_A": 10, "lambda_B": 10, "lambda_identity": 0.5}
PIX2PIX: Changes = (
    {"norm": "batch", "netG": "unet_256", "dataset_mode": "aligned"},
    {"pool_size": 0, "gan_mode": "vanilla", "lambda_L1": 100},
)
MODELS: dict[str, Changes] = {
    "cycle_gan": CYCLE_GAN,
    "cycle_gan_attn": CYCLE_GAN,
    "pix2pix": PIX2PIX,
    "pix2pix_attn": PIX2PIX,
    "colorization": (PIX2PIX[0] | {"dataset_mode": "colorization", "input_nc": 1, "output_nc": 2}, PIX2PIX[1]),
    "test": ({"dataset_mode": "single", "model_suffix": ""}, {}),
}
OURS = {  # (script, model, flag): what differs on purpose, and why
    (TestOptions, None, "num_test"): (math.inf, "50 leave pictures out unasked"),
    (TestOptions, "test", "no_dropout"): (True, "as CycleGAN's generators, whose users had to give it by hand"),
}
CHOICES: dict[str, list[str]] = {
    "netG": ["resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128"],
    "netD": ["basic", "n_layers", "pixel"],
    "norm": ["instance", "batch", "syncbatch", "none"],
    "init_type": ["normal", "xavier", "kaiming", "orthogonal"],
    "direction": ["AtoB", "BtoA"],
    "preprocess": ["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"],
    "gan_mode": ["lsgan", "vanilla", "wgangp"],
    "lr_policy": ["linear", "step", "plateau", "cosine"],
    "dataset_mode": [mode for mode in ("unaligned", "aligned", "single", "colorization") if mode in choices("data")],
    "gpu_ids": ["0", "-1", "0,1,2"],
    "display_id": ["0", "-1"],
    "max_dataset_size": ["inf", "10"],
}
OLD = [  # an old name with a value, the present one, its value
    ("--niter 7", "n_epochs", 7),
    ("--niter_decay 7", "n_epochs_decay", 7),
    ("--batchSize 7", "batch_size", 7),
    ("--loadSize 300", "load_size", 300),
    ("--fineSize 128", "crop_size", 128),
    ("--nThreads 2", "num_threads", 2),
    ("--which_model_netG unet_128", "netG", "unet_128"),
    ("--which_model_netD pixel", "netD", "pixel"),
    ("--which_direction BtoA", "direction", "BtoA"),
    ("--which_epoch 5", "epoch", "5"),
    ("--resize_or_crop scale_width", "preprocess", "scale_width"),
    ("--how_many 5", "num_test", 5),
    ("--ntest 5", "num_test", 5),
    ("--identity 0", "lambda_identity", 0),
    ("--display_single_pane_ncols 2", "display_ncols", 2),
    ("--no_lsgan", "gan_mode", "vanilla"),
]


@pytest.fixture(autouse=True)
def _announce_anew():
    parser.announce.cache_clear()


# ---- names, defaults, choices


@pytest.mark.parametrize("model", [model for model in MODELS if model in choices("models")])
@pytest.mark.parametrize("options", [TrainOptions, TestOptions])
def test_flags_and_defaults_are_upstreams(options, model):
    if (options, model) == (TrainOptions, "test"):
        return  # has no training, which tests/test_options.py holds
    always, in_training = MODELS[model]
    expected = (TRAIN | in_training if options is TrainOptions else TEST) | always | {"model": model}
    ours = {flag: value for (where, who, flag), (value, _) in OURS.items() if where is options and who in (None, model)}
    values = options().parse(["--model", model, "--dataroot", "."]).as_dict()
    assert {flag: values.get(flag, "missing") for flag in expected} == expected | ours


def test_without_flags_it_is_cycle_gan():
    """In both scripts; test.py takes over the run's model, so upstream's default there, `test`, would be in the way."""
    assert TrainOptions().parse([]).model == TestOptions().parse([]).model == "cycle_gan"


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in CHOICES.items() for value in values])
def test_choices_are_upstreams(flag, value):
    assert str(getattr(TrainOptions().parse([f"--{flag}", value]), flag)) == value


def test_networks_are_upstreams():
    assert CHOICES["netG"] == list(GENERATORS) and CHOICES["netD"] == list(DISCRIMINATORS)


# ---- old names


def test_old_names_are_all_tested_and_never_present_ones():
    assert {argv.split()[0] for argv, *_ in OLD} == {f"--{old}" for old in parser.RENAMED}
    assert not parser.RENAMED.keys() & (TRAIN | TEST).keys()


@pytest.mark.parametrize(("argv", "flag", "value"), OLD)
def test_an_old_name_works_and_says_the_new_one(capsys, argv, flag, value):
    options = TestOptions if flag == "num_test" else TrainOptions
    opt = options().parse(argv.split())
    assert (getattr(opt, flag), opt.given(flag)) == (value, True)
    (line,) = capsys.readouterr().err.splitlines()
    new = flag if flag != "gan_mode" else "gan_mode=vanilla"
    assert line == f"{argv.split()[0]} is now called --{new}"
    assert options().parse([argv.replace(" ", "=")]).as_dict() == opt.as_dict()


def test_of_old_and_new_name_the_later_wins():
    assert TrainOptions().parse(["--niter", "3", "--n_epochs", "4"]).n_epochs == 4
    assert TrainOptions().parse(["--n_epochs", "4", "--niter", "3"]).n_epochs == 3


def test_old_names_in_a_response_file(tmp_path, capsys):
    (tmp_path / "old.txt").write_text("--niter 3 --batchSize=2  # of 2018\n--identity\n0\n")
    opt = TrainOptions().parse([f"@{tmp_path / 'old.txt'}"])
    assert (opt.n_epochs, opt.batch_size, opt.lambda_identity, opt.given("n_epochs")) == (3, 2, 0, True)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_value_is_no_old_name(capsys):
    assert TrainOptions().parse(["--name", "niter", "--suffix=--niter"]).name == "niter_--niter"
    assert not capsys.readouterr().err


def test_old_names_in_a_suffix():
    suffix = "{model}_{which_model_netG}_size{loadSize}"
    assert TrainOptions().parse(["--suffix", suffix]).name == "experiment_name_cycle_gan_resnet_9blocks_size286"


def test_a_script_of_2018_trains_and_tests(tiny_data, tmp_path, capsys):
    old = "--which_model_netG resnet_6blocks --which_model_netD basic --ngf 8 --ndf 8 --loadSize 36 --fineSize 32 "
    old += "--niter 1 --niter_decay 0 --batchSize 2 --nThreads 0 --which_direction AtoB --identity 0 --no_lsgan "
    old += "--resize_or_crop resize_and_crop --display_id 0 --no_dropout"
    run = ["--dataroot", str(tiny_data), "--name", "old", "--checkpoints_dir", str(tmp_path), "--gpu_ids", "-1"]
    assert training.main([*run, *old.split()]) == 0
    told = capsys.readouterr().err.splitlines()
    assert "--niter is now called --n_epochs" in told and len([line for line in told if "now called" in line]) == 12
    run += ["--results_dir", str(tmp_path / "results"), "--which_epoch", "latest", "--how_many", "2"]
    assert testing.main(run) == 0
    shown = capsys.readouterr()
    assert "2 of 5 images translated, limited by --num_test 2" in shown.out
    assert shown.err.count("is now called") == 2


# ---- what flags do


@pytest.fixture(scope="module", params=["AtoB", "BtoA"])
def run(request, tiny_data, tmp_path_factory):
    """The folder of a run trained in each direction, which saved often."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["--direction", request.param, "--save_by_iter", "--save_latest_freq", "2"]
    return train(folder, "--dataroot", tiny_data, *flags)


def translate(run_dir: Path, *flags: str) -> Path:
    """Test a run of tests/test_cli.py; returns the folder of pictures."""
    results = run_dir.parent / "results"
    shutil.rmtree(results, ignore_errors=True)
    places = ["--checkpoints_dir", str(run_dir.parent), "--name", "run", "--results_dir", str(results)]
    assert testing.main([*places, "--device", "cpu", *flags]) == 0
    (page,) = results.glob("run/*/index.html")
    return page.parent / "images"


def pictures(folder: Path, label: str) -> list[Image.Image]:
    """All pictures with this label."""
    images = []
    for path in sorted(folder.glob(f"*_{label}.png")):
        with Image.open(path) as image:
            images.append(image.copy())
    return images


def test_direction_is_that_of_data_and_networks(run):
    """G_A's file holds the generator of the direction that the run was trained in."""
    trained, other = ("AtoB", "BtoA") if "AtoB" in str(run) else ("BtoA", "AtoB")
    seen = {label: pictures(translate(run), label) for label in ("real_A", "fake_B", "real_B", "fake_A")}
    assert len({image.tobytes() for image in itertools.chain(*seen.values())}) == 20
    turned = translate(run, "--direction", other)
    assert pictures(turned, "real_A") == seen["real_B"] and pictures(turned, "fake_B") == seen["fake_A"]
    for direction, real, fake in ((trained, "real_A", "fake_B"), (other, "real_B", "fake_A")):
        single = translate(run, "--model", "test", "--direction", direction)
        assert pictures(single, "real") == seen[real] and pictures(single, "fake") == seen[fake]


def test_phase_chooses_the_pictures(run, tiny_data):
    shown = translate(run, "--phase", "train")
    assert shown.parent.name == "train_latest"
    domain = "A" if "AtoB" in str(run) else "B"
    with Image.open(tiny_data / f"train{domain}" / "0.png") as image:
        assert pictures(shown, "real_A")[0] == image.resize((32, 32), Image.Resampling.BICUBIC)


def test_save_by_iter_keeps_what_load_iter_loads(run, capsys):
    images = {int(path.name.split("_")[1]) for path in run.glob("iter_*_net_G_A.pth")}
    assert images == {2, 4, 6, 8, 10}
    latest = pictures(translate(run), "fake_B")
    capsys.readouterr()
    folder = translate(run, "--load_iter", "4")
    assert "iter_4_net_G_A.pth" in capsys.readouterr().out
    assert folder.parent.name == "test_iter_4"
    assert len(pictures(folder, "fake_B")) == 5 and pictures(folder, "fake_B") != latest


def test_training_continues_from_load_iter(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    train(tmp_path, "--continue_train", "--load_iter", "6")
    assert "continuing run in epoch 2 after 6 images" in capsys.readouterr().out
    assert logged_losses(tmp_path / "run")[-4:] == logged_losses(run)[-4:]


@pytest.mark.parametrize(("ratio", "size"), [("2", (64, 32)), ("0.5", (32, 64)), ("1", (32, 32))])
def test_aspect_ratio_stretches_results(run, ratio, size):
    folder = translate(run, "--aspect_ratio", ratio, "--num_test", "1")
    assert {image.size for label in ("real_A", "fake_B") for image in pictures(folder, label)} == {size}


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
    as_trained, again = (pictures(translate(run_dir), "fake_B") for _ in range(2))
    assert (as_trained == again) == repeatable, "dropout is noise"
    evaluated, again = (pictures(translate(run_dir, "--eval"), "fake_B") for _ in range(2))
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
