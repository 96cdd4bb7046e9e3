"""Upstream's flags: names, defaults and choices, and what they were called in 2017 and 2018."""

import math

import pytest

import test as testing
import train as training
from models.networks import DISCRIMINATORS, GENERATORS
from options import parser
from options.test_options import TestOptions
from options.train_options import TrainOptions
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
    (TestOptions, None, "num_test"): (math.inf, "50 leave images out unasked"),
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
    ("--upsample nearest", "resample", "nearest"),  # ours
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
    (line,) = capsys.readouterr().out.splitlines()
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
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_value_is_no_old_name(capsys):
    assert TrainOptions().parse(["--name", "niter", "--suffix=--niter"]).name == "niter_--niter"
    assert not capsys.readouterr().out


def test_old_names_in_a_suffix():
    suffix = "{model}_{which_model_netG}_size{loadSize}"
    assert TrainOptions().parse(["--suffix", suffix]).name == "experiment_name_cycle_gan_resnet_9blocks_size286"


def test_a_script_of_2018_trains_and_tests(tiny_data, tmp_path, capsys):
    old = "--which_model_netG resnet_6blocks --which_model_netD basic --ngf 8 --ndf 8 --loadSize 36 --fineSize 32 "
    old += "--niter 1 --niter_decay 0 --batchSize 2 --nThreads 0 --which_direction AtoB --identity 0 --no_lsgan "
    old += "--resize_or_crop resize_and_crop --display_id 0 --no_dropout"
    run = ["--dataroot", str(tiny_data), "--name", "old", "--checkpoints_dir", str(tmp_path), "--gpu_ids", "-1"]
    assert training.main([*run, *old.split()]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "--niter is now called --n_epochs" in told and len([line for line in told if "now called" in line]) == 12
    run += ["--results_dir", str(tmp_path / "results"), "--which_epoch", "latest", "--how_many", "2"]
    assert testing.main(run) == 0
    shown = capsys.readouterr()
    assert "2 of 5 images made, limited by --num_test 2" in shown.out
    assert shown.out.count("is now called") == 2
