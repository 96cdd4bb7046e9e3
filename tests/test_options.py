"""The command line: upstream's flags, checks and hints, response files, saved options."""

import contextlib
import io
import math
import os
import pickle
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from models.networks import DISCRIMINATORS, GENERATORS
from options.base_options import Options
from options.parser import RENAMED, Parser
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.registry import choices

# What scripts written for upstream rely on: flag -> default.
UPSTREAM_BASE = {
    "name": "experiment_name", "gpu_ids": "0", "checkpoints_dir": "./checkpoints", "model": "cycle_gan", "input_nc": 3,
    "output_nc": 3, "ngf": 64, "ndf": 64, "netD": "basic", "netG": "resnet_9blocks", "n_layers_D": 3,
    "norm": "instance", "init_type": "normal", "init_gain": 0.02, "no_dropout": True, "dataset_mode": "unaligned",
    "direction": "AtoB", "num_threads": 4, "batch_size": 1, "crop_size": 256, "max_dataset_size": math.inf,
    "preprocess": "resize_and_crop", "display_winsize": 256, "epoch": "latest", "load_iter": 0, "verbose": False,
    "suffix": "", "use_wandb": False, "wandb_project_name": "CycleGAN-and-pix2pix",
}  # fmt: skip
UPSTREAM_TRAIN = UPSTREAM_BASE | {
    "display_freq": 400, "display_ncols": 4, "display_id": 1, "display_server": "http://localhost",
    "display_env": "main", "display_port": 8097, "update_html_freq": 1000, "print_freq": 100, "no_html": False,
    "save_latest_freq": 5000, "save_epoch_freq": 5, "save_by_iter": False, "continue_train": False, "epoch_count": 1,
    "phase": "train", "n_epochs": 100, "n_epochs_decay": 100, "beta1": 0.5, "lr": 0.0002, "gan_mode": "lsgan",
    "pool_size": 50, "lr_policy": "linear", "lr_decay_iters": 50, "lambda_A": 10, "lambda_B": 10,
    "lambda_identity": 0.5, "load_size": 286, "serial_batches": False, "no_flip": False,
}  # fmt: skip
UPSTREAM_TEST = UPSTREAM_BASE | {
    "results_dir": "./results/", "aspect_ratio": 1.0, "phase": "test", "eval": False, "load_size": 256,
    "serial_batches": True, "no_flip": True, "num_test": math.inf,  # upstream's 50 left images out unasked
}  # fmt: skip
UPSTREAM_CHOICES = {
    "netG": ["resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128"],
    "netD": ["basic", "n_layers", "pixel"],
    "norm": ["instance", "batch", "none"],
    "init_type": ["normal", "xavier", "kaiming", "orthogonal"],
    "direction": ["AtoB", "BtoA"],
    "preprocess": ["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"],
    "gan_mode": ["lsgan", "vanilla", "wgangp", "hinge"],
    "lr_policy": ["linear", "step", "plateau", "cosine"],
    "gpu_ids": ["0", "-1", "0,1,2"],
    "display_id": ["0", "-1"],
    "max_dataset_size": ["inf", "10"],
}


def train(*argv: str) -> Options:
    return TrainOptions().parse(argv)


def refused(capsys, *argv: str, script=TrainOptions) -> str:
    """The last line of the error that ends the parsing of `argv`."""
    with pytest.raises(SystemExit) as caught:
        script().parse(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# ---- upstream's flags


@pytest.mark.parametrize(("script", "expected"), [(TrainOptions, UPSTREAM_TRAIN), (TestOptions, UPSTREAM_TEST)])
def test_upstreams_flags_have_its_defaults(script, expected):
    values = script().parse([]).as_dict()
    assert {flag: values.get(flag, "missing") for flag in expected} == expected


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, vs in UPSTREAM_CHOICES.items() for value in vs])
def test_upstreams_choices_are_taken(flag, value):
    assert str(getattr(train(f"--{flag}", value), flag)) == value


def test_all_networks_can_be_chosen():
    assert UPSTREAM_CHOICES["netG"] == list(GENERATORS) and UPSTREAM_CHOICES["netD"] == list(DISCRIMINATORS)


def test_left_out_dataroot_is_bundled():
    assert os.path.isdir(train().dataroot) and not train().given("dataroot")  # noqa: PTH112


# ---- mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--lamda_A 5", "no option --lamda_A; did you mean --lambda_A?"),
        ("--lamda_A=5", "no option --lamda_A; did you mean --lambda_A?"),
        ("--n_epoch 5", "no option --n_epoch; did you mean --n_epochs?"),  # no abbreviations
        ("--loadSize 128", "no option --loadSize; did you mean --load_size?"),
        ("--xyzzy 1", "no option --xyzzy; --help lists them"),
        ("maps", "'maps' belongs to no option"),
        ("--model cyclegan", "argument --model: there is no 'cyclegan': did you mean cycle_gan? choose from"),
        ("--dataset_mode single_", "there is no 'single_': did you mean single? choose from aligned,"),
        ("--lr_policy cosin", "argument --lr_policy: invalid choice: 'cosin'"),
        ("--gan_mode wgan", "argument --gan_mode: invalid choice: 'wgan'"),
        ("--batch_size 0", "argument --batch_size: '0' is not a whole number from 1"),
        ("--load_size -5", "argument --load_size: '-5' is not a whole number from 1"),
        ("--crop_size 256.0", "argument --crop_size: '256.0' is not a whole number from 1"),
        ("--crop_size 300", "--crop_size 300 is larger than --load_size 286"),
        ("--preprocess scale_width_and_crop --crop_size 300", "--crop_size 300 is larger than --load_size 286"),
        ("--epoch_count 0", "argument --epoch_count: '0' is not a whole number from 1"),
        ("--epoch_count 201", "--epoch_count 201: "),
        ("--n_epochs 0 --n_epochs_decay 0", "--epoch_count 1: "),
        ("--lr 0", "argument --lr: '0' is not a number above 0"),
        ("--lr nan", "argument --lr: 'nan' is not a number above 0"),
        ("--lr inf", "argument --lr: 'inf' is not a number above 0"),
        ("--beta1 1", "argument --beta1: '1' is not a number from 0 to below 1"),
        ("--ema_decay 1.5", "argument --ema_decay: '1.5' is not a number from 0 to below 1"),
        ("--pool_size -1", "argument --pool_size: '-1' is not a whole number from 0"),
        ("--seed -1", "argument --seed: '-1' is not a whole number from 0 to 2**32 - 1"),
        ("--gpu_ids one", "argument --gpu_ids: 'one' is not a list of GPU numbers"),
        ("--max_dataset_size 0", "argument --max_dataset_size: '0' is not a whole number from 1, or inf"),
        ("--display_port 0", "argument --display_port: '0' is not a port"),
        ("--name ../x", "argument --name: '../x' is not a plain name"),
        ("--name ..", "argument --name: '..' is not a plain name"),
        ("--name=", "argument --name: '' is not a plain name"),
        ("--model test", "call test.py, not train.py"),
        ("@missing.txt", "No such file or directory: 'missing.txt'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(capsys, argv, message):
    assert message in refused(capsys, *argv.split())


def test_the_crop_may_be_larger_where_nothing_is_resized_to_load_size():
    assert train("--preprocess", "crop", "--crop_size", "300").crop_size == 300


def test_renamed_flags_lead_to_ones_that_exist():
    known = train().as_dict().keys() | TestOptions().parse([]).as_dict().keys()
    assert set(RENAMED.values()) <= known and not RENAMED.keys() & known


# ---- help


@pytest.mark.parametrize("script", [TrainOptions, TestOptions])
@pytest.mark.parametrize("model", choices("models"))
def test_help_shows_every_flag_with_a_text(monkeypatch, capsys, script, model):
    parsers: list[Parser] = []
    monkeypatch.setattr(script, "complete", lambda self, *arguments: parsers.append(arguments[-1]))
    if (script, model) == (TrainOptions, "test"):
        refused(capsys, "--model", model)
        return
    flags = script().parse(["--model", model]).as_dict()
    with pytest.raises(SystemExit) as caught:
        script().parse(["--model", model, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"--{flag}[ ,\n]", shown) for flag in flags)
    assert [action.dest for action in parsers[0]._actions if not action.help] == []
    assert shown.count("(default") <= len(flags), "no default twice"


# ---- read-only


def test_options_are_read_only():
    opt = train("--name", "x")
    with pytest.raises(AttributeError, match="read-only: --name"):
        opt.name = "y"
    with pytest.raises(AttributeError, match="read-only"):
        del opt.name
    with pytest.raises(AttributeError, match="no option --nam"):
        opt.nam  # noqa: B018
    opt.as_dict()["name"] = "y"
    assert opt.name == pickle.loads(pickle.dumps(opt)).name == "x"


def test_given():
    opt = train("--lr", "0.0002", "--no_html")
    assert opt.given("lr") and opt.given("no_html") and not opt.given("beta1")


# ---- response files


def test_a_response_file_holds_words_and_comments(tmp_path):
    recipe = tmp_path / "demo.txt"
    recipe.write_text("# a recipe\n--lr 0.001 --no_html  # both\n\n--name 'a run'\n--model\ncycle_gan_attn\n")
    opt = train(f"@{recipe}", "--lr", "0.002")
    assert (opt.lr, opt.no_html, opt.name, opt.model) == (0.002, True, "a run", "cycle_gan_attn")
    assert opt.given("no_html")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"--name 'x", "No closing quotation"), (b"@demo.txt", "from within another"), (b"\x89PNG\xff", "text file")],
)
def test_a_broken_response_file(tmp_path, capsys, content, message):
    (tmp_path / "demo.txt").write_bytes(content)
    assert message in refused(capsys, f"@{tmp_path / 'demo.txt'}")


# ---- suffix


def test_suffix_is_filled_in():
    opt = train("--name", "maps", "--suffix", "{model}_{netG}_size{load_size}")
    assert opt.name == "maps_cycle_gan_resnet_9blocks_size286"


@pytest.mark.parametrize("suffix", ["{typo}", "{", "{0}", "{lr:x}", "{netG.x}", "{checkpoints_dir}", "a/b"])
def test_a_wrong_suffix_is_named(capsys, suffix):
    assert f"--suffix {suffix}: " in refused(capsys, "--suffix", suffix)


# ---- anything at all

FLAGS = sorted(train().as_dict().keys() | TestOptions().parse([]).as_dict().keys())
WORDS = st.one_of(
    st.sampled_from([f"--{flag}" for flag in FLAGS]),
    st.sampled_from(["0", "-1", "1e9", "nan", "inf", "AtoB", "none", "basic", "cycle_gan_attn", "test", "x"]),
    st.sampled_from(["@", "@.", "--", "-", "{model}", "{", "--lr=", "--xyz=1", "..", "a/b", "--foo bar"]),
    st.text(st.characters(exclude_characters="\0"), max_size=8),  # which no command line can hold
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([TrainOptions, TestOptions]), st.lists(WORDS, max_size=6))
@example(TrainOptions, ["--name", "\udcff"])
@example(TestOptions, ["--suffix", "{name!x}"])
def test_no_command_line_gives_a_traceback(script, argv):
    if {"-h", "--help"} & set(argv):
        return
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            assert isinstance(script().parse(argv), Options)
        except SystemExit as end:
            assert end.code == 2
            assert errors.getvalue().splitlines()[-1].split("error: ", 1)[1].strip()
