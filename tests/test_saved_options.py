"""Options in a run's folder, and what testing takes over from them."""

import json
import math
from argparse import ArgumentParser
from pathlib import Path

import pytest

from options.base_options import from_portable, read_saved
from options.test_options import TestOptions
from options.train_options import TrainOptions, add_display_flags, add_saving_flags, changed_flags


def test_options_are_saved_and_read_back(tmp_path):
    opt = TrainOptions().parse(["--name", "ünï", "--ngf", "8"])
    opt.save(tmp_path)
    assert read_saved(tmp_path) == opt.as_dict()
    text = (tmp_path / "train_opt.json").read_text(encoding="utf-8")
    assert '"bundled:chart"' in text, "another clone has it elsewhere"
    json.loads(text, parse_constant=pytest.fail)  # Infinity and NaN are not JSON
    lines = (tmp_path / "train_opt.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "----------------- Options ---------------"
    assert lines[-1] == "----------------- End -------------------"
    assert "                      ngf: 8                             \t[default: 64]" in lines
    assert "                    ndf: 64" not in lines and f"{'ndf':>25}: {64:<30}" in lines
    assert len(lines) == len(opt.as_dict()) + 2
    TrainOptions().parse(["--dataroot", "own"]).save(tmp_path)
    assert read_saved(tmp_path)["dataroot"] == str(Path("own").absolute()), "also found from another folder"
    TestOptions().parse([]).save(tmp_path)
    assert (tmp_path / "test_opt.txt").is_file() and (tmp_path / "test_opt.json").is_file()


def test_reading_what_is_not_there_or_damaged(tmp_path):
    assert read_saved(tmp_path) == {}
    (tmp_path / "train_opt.json").write_text("{")
    with pytest.raises(ValueError, match=r"train_opt\.json is damaged"):
        read_saved(tmp_path)


def test_parsing_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TrainOptions().parse([])
    TestOptions().parse([])
    assert list(tmp_path.iterdir()) == []


SAVED_ARGV = [
    "--model", "cycle_gan_attn", "--dataroot", "my", "--netG", "resnet_6blocks", "--ngf", "8", "--resample", "nearest",
    "--crop_size", "64", "--load_size", "72", "--batch_size", "4", "--seed", "7",
    "--preprocess", "scale_width_and_crop", "--direction", "BtoA", "--spectral_norm_G", "--name", "run",
    "--ema_decay", "0.9", "--num_threads", "1", "--max_dataset_size", "3",
]  # fmt: skip
DESCRIBE = [
    "dataroot", "netG", "ngf", "ndf", "resample", "crop_size", "preprocess", "direction", "spectral_norm_G", "attn_G",
    "attn_D", "no_dropout", "norm", "input_nc", "output_nc",
]  # fmt: skip


def test_testing_takes_over_what_describes_the_run():
    saved = TrainOptions().parse(SAVED_ARGV).as_dict() | {"flag_of_an_older_version": 1}
    opt = TestOptions().parse(["--name", "run"], saved)
    for flag in [*DESCRIBE, "model", "dataset_mode"]:
        assert getattr(opt, flag) == saved[flag] and not opt.given(flag)
    expected = {"load_size": 64, "batch_size": 1, "seed": 0, "phase": "test", "num_threads": 4, "no_flip": True}
    assert {flag: getattr(opt, flag) for flag in expected} == expected
    assert opt.max_dataset_size == math.inf and opt.serial_batches
    assert "flag_of_an_older_version" not in opt.as_dict() and "ema_decay" not in opt.as_dict()


def test_the_command_line_wins_over_the_run():
    opt = TestOptions().parse(["--ngf", "16", "--crop_size", "32"], TrainOptions().parse(SAVED_ARGV).as_dict())
    assert (opt.ngf, opt.crop_size, opt.load_size) == (16, 32, 32)


def test_another_model_brings_its_own_data_set_and_keeps_the_network():
    saved = TrainOptions().parse(SAVED_ARGV).as_dict()
    opt = TestOptions().parse(["--model", "test"], saved)
    assert (opt.model, opt.dataset_mode) == ("test", "single")
    assert {flag: getattr(opt, flag) for flag in DESCRIBE} == {flag: saved[flag] for flag in DESCRIBE}


def test_flags_of_the_data_set_are_taken_over_too():
    saved = TrainOptions().parse(["--model", "template", "--coarse", "8"]).as_dict()
    assert TestOptions().parse([], saved).coarse == 8


def parse_changed(saved: dict, *argv: str) -> list[str]:
    return changed_flags(TrainOptions().parse(["--continue_train", *argv], saved), saved)


def test_a_resumed_run_names_what_makes_another_run_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = from_portable(TrainOptions().parse(["--model", "cycle_gan", "--dataroot", "my", "--lr", "0.1"]).portable())
    assert parse_changed(saved, "--dataroot", "my", "--lr", "0.1", "--n_epochs", "500", "--device", "cpu") == []
    assert parse_changed(saved, "--lr_G", "0.2", "--no_flip") == [
        "--no_flip True (so far False)",
        "--lr_G 0.2 (so far 0.1)",
    ]
    assert parse_changed(saved, "--dataroot", "other") == [f"--dataroot {tmp_path}/other (so far {tmp_path}/my)"]
    assert parse_changed(saved, "--model", "cycle_gan_attn", "--attn_G", "up1") == []
    assert "--model pix2pix (so far cycle_gan)" in parse_changed(saved, "--model", "pix2pix")


def test_what_is_saved_and_shown_is_free():
    parser = ArgumentParser()
    for add_flags in (add_saving_flags, add_display_flags):
        add_flags(parser)
    assert {action.dest for action in parser._actions} - {"help"} <= TrainOptions.free_flags
    assert TrainOptions().parse([]).as_dict().keys() >= TrainOptions.free_flags | TrainOptions.own_flags


def test_override_is_for_resumed_runs(capsys):
    with pytest.raises(SystemExit):
        TrainOptions().parse(["--override"])
    assert "--override needs --continue_train" in capsys.readouterr().err
