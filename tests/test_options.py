"""The command line: checks and hints, help, response files."""

import contextlib
import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from options.base_options import Options
from options.parser import RENAMED, Parser
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.registry import choices

ROOT = Path(__file__).parent.parent


def train(*argv: str) -> Options:
    return TrainOptions().parse(argv)


def refused(capsys, *argv: str, script=TrainOptions) -> str:
    """The last line of the error that ends the parsing of `argv`."""
    with pytest.raises(SystemExit) as caught:
        script().parse(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_left_out_dataroot_is_bundled():
    assert os.path.isdir(train().dataroot) and not train().given("dataroot")  # noqa: PTH112


# ---- mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--lamda_A 5", "no option --lamda_A; did you mean --lambda_A?"),
        ("--model cut --lambda_A 5", "--lambda_A is no option of this --model, but of cycle_gan, cycle_gan_attn"),
        ("--lamda_A=5", "no option --lamda_A; did you mean --lambda_A?"),
        ("--n_epoch 5", "no option --n_epoch; did you mean --n_epochs?"),  # no abbreviations
        ("--loadsize 128", "no option --loadsize; did you mean --load_size?"),
        ("--which_model_G unet_256", "no option --which_model_G; did you mean --netG?"),  # nearly an old name
        ("--how_many 5", "no option --how_many; --help lists them"),  # an old name of a flag that is not train.py's
        ("--loadSize x", "argument --load_size: 'x' is not a whole number from 1"),
        ("--xyzzy 1", "no option --xyzzy; --help lists them"),
        ("maps", "'maps' belongs to no option"),
        ("--CUT_mode FastCUT", "no option --CUT_mode; did you mean --model cut or --model fastcut?"),
        ("--model cut --nce_idt False", "'False' belongs to no option; a switch takes no value, see --help"),
        ("--model cyclegan", "argument --model: there is no 'cyclegan': did you mean cycle_gan? choose from"),
        ("--dataset_mode single_", "there is no 'single_': did you mean single? choose from aligned,"),
        ("--lr_policy cosin", "argument --lr_policy: invalid choice: 'cosin'"),
        ("--gan_mode wgan", "argument --gan_mode: invalid choice: 'wgan'"),
        ("--batch_size 0", "argument --batch_size: '0' is not a whole number from 1"),
        ("--load_size -5", "argument --load_size: '-5' is not a whole number from 1"),
        ("--crop_size 256.0", "argument --crop_size: '256.0' is not a whole number from 1"),
        ("--crop_size 300", "--crop_size 300 is larger than --load_size 286"),
        ("--preprocess scale_width_and_crop --crop_size 300", "--crop_size 300 is larger than --load_size 286"),
        ("--content sea:B>R", "--content needs what reads its rules: add content to --metrics, or set --lambda_co"),
        ("--metrics_features lite2", "--metrics_features lite2 needs metrics that read it: add --metrics kid"),
        ("--save_by_iter --save_latest_freq 0", "--save_by_iter keeps the checkpoints of --save_latest_freq"),
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
    shown = capsys.readouterr().out.partition("\nexamples:\n")[0]
    unused = parsers[0].withdrawn
    assert all((re.search(rf"--{flag}[ ,\n]", shown) is None) == (flag in unused) for flag in flags)
    assert [action.dest for action in parsers[0]._actions if not action.help] == []
    assert shown.count("(default") <= len(flags), "no default twice"
    assert not [name for name in RENAMED if f"--{name} " in shown], "old names are accepted, not advertised"


def test_help_of_what_is_off_by_default(capsys):
    with pytest.raises(SystemExit):
        TrainOptions().parse(["--model", "cycle_gan", "--help"])
    assert re.search(r"--no_dropout +no dropout in G \(default\)\n", capsys.readouterr().out)


def test_help_is_quick():
    """What is slow to import, but for torch itself, is not imported before it is needed."""
    code = (
        "import contextlib, sys, train, test\n"
        "for script in (train, test):\n"
        "    with contextlib.suppress(SystemExit): script.main(['--help'])\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "models.cycle_gan_model" in imported
    assert not imported & {"torchvision", "torch._dynamo", "visdom", "wandb"}


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


def test_backslashes_of_windows_paths_are_no_escapes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sep", "\\")
    (tmp_path / "flags.txt").write_text('--name x --results_dir C:\\new\\maps "C:\\two words"')
    words = Parser("test.py", "", []).convert_arg_line_to_args((tmp_path / "flags.txt").read_text())
    assert words == ["--name", "x", "--results_dir", "C:\\new\\maps", "C:\\two words"]
