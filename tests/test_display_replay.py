"""TensorBoard and Weights & Biases during training, and every sink rebuilt from the log of a run."""

import re
import shutil
import sys
from itertools import pairwise

import pytest

import train as training
from display.events import Images, Losses, Metrics
from scripts import replay
from test import main as run_test
from tests.test_cli import train as run_training
from tests.test_display import events, lines_of_losses


def send(tmp_path, to, *flags):
    """Replay the run of `run_training` to a sink."""
    return replay.main(["--checkpoints_dir", str(tmp_path), "--name", "run", "--to", to, *flags])


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Train for two epochs of five images each; return the folder of the checkpoints."""
    return run_training(tmp_path_factory.mktemp("trained"), "--dataroot", tiny_data, "--update_html_freq", "3").parent


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_the_log_of_a_run_has_its_losses(trained):
    run_dir = trained / "run"
    logged = events(run_dir, Losses)
    for line, event in zip(lines_of_losses(run_dir), logged, strict=True):
        shown = {name: float(value) for name, value in re.findall(r"(\w+): ([\d.]+)", line.partition(") ")[2])}
        assert shown.keys() == {"G_A", "G_B", "cycle_A", "cycle_B", "idt_A", "idt_B", "D_A", "D_B"}
        assert shown == {name: pytest.approx(event.values[name], abs=0.0005) for name in shown}
    assert [event.step for event in logged] == list(range(1, 11))
    assert [event.values["lr_G"] for event in logged] == [0.0002] * 5 + [0.0001] * 5
    assert all(before.seconds < after.seconds for before, after in pairwise(logged))


def test_loss_log_and_page_are_rebuilt(trained, copy, capsys):
    run_dir = copy / "run"
    before = (run_dir / "loss_log.txt").read_text()
    page = (run_dir / "web/index.html").read_text()
    (run_dir / "loss_log.txt").write_text("other\n")
    (run_dir / "web/index.html").unlink()
    assert send(copy, "log") == 0
    assert (run_dir / "loss_log.txt").read_text() == before
    assert (run_dir / "loss_log.old.txt").read_text() == "other\n"
    assert send(copy, "html") == 0
    updated = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")
    rebuilt = (run_dir / "web/index.html").read_text().replace(str(copy), str(trained))
    assert updated.sub("", rebuilt) == updated.sub("", page)
    assert "run: 17 events shown in html" in capsys.readouterr().out


def test_images_that_were_replaced_or_removed_are_skipped(copy):
    run_dir = copy / "run"
    all_events = events(run_dir)
    shown = [event for event in all_events if isinstance(event, Images)]
    assert [event.images for event in shown] == [3, 5, 6, 9, 10]
    kept = replay.without_replaced_images(all_events, run_dir)
    assert [event.images for event in kept if isinstance(event, Images)] == [5, 10]
    assert [event for event in kept if isinstance(event, Losses)] == [e for e in all_events if isinstance(e, Losses)]
    (run_dir / "web/images/epoch001_fake_B.png").unlink()
    kept = replay.without_replaced_images(all_events, run_dir)
    assert [event.images for event in kept if isinstance(event, Images)] == [10]


def test_invalid_arguments(copy, capsys):
    with pytest.raises(ValueError, match=r"has no events\.jsonl\. Check --name"):
        replay.main(["--checkpoints_dir", str(copy), "--name", "other", "--to", "log"])
    with pytest.raises(SystemExit):
        send(copy, "nowhere")
    assert "choose from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        send(copy, "log", "--display_prot", "1")
    assert "did you mean --display_port?" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["visdom", "tensorboard", "wandb"])
def test_a_missing_package_is_named(copy, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ValueError, match=f"^--to {package} needs the package {package}. Install it: pip install"):
        send(copy, package)


def scalars(folder):
    """Return what TensorBoard shows: tag -> [(step, value)], and the tags of images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder)).Reload()
    tags = shown.Tags()
    return {tag: [(point.step, point.value) for point in shown.Scalars(tag)] for tag in tags["scalars"]}, tags["images"]


def test_tensorboard(tiny_data, tmp_path):
    flags = ["--use_tensorboard", "--no_html", "--display_freq", "5", "--metrics", "l1"]
    run_dir = run_training(tmp_path, "--dataroot", tiny_data, *flags)
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train", "--use_tensorboard"]
    assert training.main([*places, "--n_epochs", "2"]) == 0
    curves, images = scalars(run_dir / "tensorboard")
    logged = events(run_dir, Losses)
    assert curves["losses/G_A"] == [(event.images, pytest.approx(event.values["G_A"])) for event in logged]
    assert [step for step, _ in curves["losses/G_A"]] == list(range(1, 16))
    assert curves["metrics/l1"] == [
        (event.images, pytest.approx(event.values["l1"])) for event in events(run_dir, Metrics)
    ]
    assert curves.keys() >= {"learning rates/lr_G", "peak memory, MB/peak_memory_mb"}
    assert "fake_B" in images

    shutil.rmtree(run_dir / "tensorboard")
    assert send(tmp_path, "tensorboard") == 0
    assert scalars(run_dir / "tensorboard") == (curves, images)
    assert send(tmp_path, "tensorboard") == 0
    assert scalars(run_dir / "tensorboard") == (curves, images)  # nothing is there twice


def test_wandb_gets_losses_images_and_results(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = run_training(
        tmp_path, "--dataroot", tiny_data, "--use_wandb", "--display_freq", "5", "--no_html", "--metrics", "l1"
    )
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert run_test([*places, "--results_dir", str(tmp_path / "results"), "--use_wandb", "--num_test", "2"]) == 0
    for folder, count in (("run", 2 * 8), ("results/run/test_latest", 2 * 6)):
        assert len(list(tmp_path.glob(f"{folder}/wandb/offline-run-*/files/media/images/*.png"))) == count
    (name,) = (path.name for path in run_dir.glob("wandb/offline-run-*"))
    run_id = (run_dir / "wandb_id.txt").read_text()
    assert name.endswith(run_id)
    assert training.main([*places, "--continue_train", "--n_epochs", "2"]) == 0
    assert (run_dir / "wandb_id.txt").read_text() == run_id
    assert send(tmp_path, "wandb") == 0
    assert (run_dir / "wandb_id.txt").read_text() != run_id  # a replay creates a new run
