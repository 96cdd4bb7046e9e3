"""benchmarks.ablation: tables of runs with and without attention."""

import subprocess

import pytest

from benchmarks.ablation import main
from tests.helpers import TINY


def test_a_table_of_variants_whose_runs_are_kept(tiny_data, tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "tiny.txt"
    flags = ["--model", "cycle_gan_attn", "--lambda_identity", "2", "--dataroot", str(tiny_data), *TINY]
    recipe.write_text(" ".join(flags))
    argv = ["--recipe", str(recipe), "--folder", str(tmp_path / "runs"), "--epochs", "1", "--metrics", "l1,content"]
    argv += ["--variants", "none", "G and D", "CUT", "--seeds", "0", "1"]
    assert main(argv) == 0
    table = capsys.readouterr().out
    names, _, none, both, cut = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert names == [
        "variant",
        "images",
        "ms an image",
        "L1 (0..255)",
        "edge correlation",
        "mutual information (bits)",
    ]
    assert none[:2] == ["none", "5 ± 0"] and both[:2] == ["G and D", "5 ± 0"]
    assert cut[:2] == ["CUT", "5 ± 0"] and len(cut) == len(none)
    assert none[3] != both[3], "another network"
    mean, _, deviation = both[3].split()
    assert 0 < float(mean) < 255 and float(deviation) > 0, "two seeds"
    assert (tmp_path / "runs" / "tiny.md").read_text() == table

    monkeypatch.setattr(subprocess, "run", None)
    assert main(argv) == 0, "nothing is trained again"
    assert capsys.readouterr().out == table

    recipe.write_text(" ".join([*flags, "--lr", "0.001"]))
    with pytest.raises(ValueError, match="has other flags: choose another --folder"):
        main(argv)
