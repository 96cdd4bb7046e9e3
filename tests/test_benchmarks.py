"""The benchmarks for a device run, here with tiny cases on the CPU. What they measure is not tested."""

import json
import statistics

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import DEVICE_ROWS, Bench, DeviceRow, measure_all
from benchmarks.rows import Figure, Peak, Worker, speed


def test_every_row_of_a_device_is_measured(tmp_path, capsys):
    assert main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert list(rows) == [row.name for row in DEVICE_ROWS]
    shown = capsys.readouterr().out
    for name, row in rows.items():
        assert f"{name} | {row['aim']} | {row['text']}" in shown
        if row["aim"].endswith("x") and row["aim"].startswith(">="):
            before, after = row["data"]["seconds"]
            items = 0.5 if name.startswith(("cycle_gan", "sagan")) else 1
            assert row["value"] == pytest.approx(statistics.median(before) / statistics.median(after) / items)
            assert row["reached"] == (row["value"] >= float(row["aim"].strip("<>=x ")))
    assert "of the bf16 peak" in rows["cycle_gan 256 px, batch 8, bf16, eager"]["details"]


def test_rows_of_a_cpu_compare_two_processes():
    tiny = {"size": 32, "ngf": 4, "blocks": 1}
    row = speed("tiny", 0.0, ("plain_cycle_gan", tiny), ("plain_cycle_gan", tiny), "fp32")
    figure = row.measure(2, {"fp32": Peak("fp32", 1)})
    assert figure.reached and len(figure.data["ratios"]) == 2 and "of the convolution peak" in figure.details
    assert statistics.median(figure.data["ratios"]) == figure.value


def test_a_worker_that_fails_is_reported(capfd):
    with pytest.raises(RuntimeError, match="a worker ended"):
        Worker("no such case")
    assert "no such case" in capfd.readouterr().err


def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda", "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "skipped: PyTorch finds no NVIDIA GPU on this machine\n"
    assert not (tmp_path / "none").exists()


def test_a_row_that_fails_does_not_keep_others_from_being_measured():
    def fail(bench: Bench) -> Figure:
        raise RuntimeError("out of memory\nand more")

    good = DeviceRow("good", ">= 1x", lambda bench: Figure(1.0, "1x", True, ""))
    rows = [DeviceRow("bad", ">= 1x", fail), good]
    reported = []
    failures = measure_all(Bench("cpu", 1), rows, minutes=1, report=lambda row, figure: reported.append(row.name))
    assert reported == ["good"] and failures == ["bad failed: out of memory"]
    late = measure_all(Bench("cpu", 1), rows, minutes=-1, report=lambda row, figure: reported.append(row.name))
    assert late == ["not reached in -1 minutes: bad; good"] and reported == ["good"]
