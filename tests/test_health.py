"""Each health check finds its fault, made on purpose, and is silent without it; looking changes no training."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import training.health
from display.event_log import LogReader
from display.events import Health as HealthEvent
from models.base_model import BaseModel, GeneratorView
from models.networks.layers import evaluating
from options.train_options import TrainOptions
from scripts import health as report
from tests.fingerprint import digest
from tests.helpers import TINY, random_batch, training_model
from tests.test_cli import train
from training.health import IMAGES, Health
from training.health_checks import (
    CHECKS,
    Attention,
    Check,
    Content,
    Cycle,
    Look,
    LossScale,
    LossSeries,
    Scores,
    StepTimes,
    Try,
    accuracy,
    degraded,
    grid_strength,
    thumbnails,
)
from training.optimization import Optimization
from training.resume import training_state
from util.registry import choices, find_class

ROOT = Path(__file__).parent.parent
MODELS = sorted(set(choices("models")) - {"test"})


def photos(seed, count=8, size=64):
    """Smooth random images with a little noise, (count, 3, size, size) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-0.95, 0.95)
    return smooth + 0.04 * (torch.rand(smooth.shape, generator=generator) - 0.5)


def look(fake, real, **fields):
    return Look(fake=fake, real=real, fakes=thumbnails(fake), reals=thumbnails(real), **fields)


def scores(real, fake, slope):
    """Scores of 8 images around two levels, whose gradient is `slope` in each of the values."""
    noise = torch.linspace(-1, 1, 8)[:, None]
    return Scores(real + noise, fake + noise, torch.full((8, 3, 64, 64), slope))


def cycle(rec_of_degraded):
    source = photos(3)
    return Cycle(source, degraded(source), source + 0.02, rec_of_degraded)


A, B = photos(1), photos(2)
CHECKERS = torch.ones(64, 64)
CHECKERS[::2, 1::2] = CHECKERS[1::2, ::2] = -1
VALUES = A[0].numel()
STRONG = scores(5.0, -5.0, slope=200 / VALUES)  # sure, and sensitive to every value
GROWING = [1 + step / 20 + step % 3 / 10 for step in range(32)]

# name of a check: (seen with the fault, seen without it)
CASES = {
    "discriminator wins": (
        look(B, A, scores=scores(5.0, -5.0, slope=1e-9)),
        [look(B, A, scores=STRONG), look(B, A, scores=scores(0.5, 0.0, slope=1e-9))],
    ),
    "discriminator lost": (
        look(B, A, scores=scores(0.0, 0.0, slope=0.0)),
        [look(B, A, scores=scores(0.5, 0.0, slope=0.0)), look(B, A, scores=STRONG)],
    ),
    "oscillation": (
        LossSeries([[0.05, 0.5][step // 6 % 2] for step in range(32)]),
        [LossSeries(GROWING), LossSeries(GROWING[::-1]), LossSeries([0.3 if n % 2 else 0.1 for n in range(32)])],
    ),
    "mode collapse": (look(A[:1] + 0.03 * (B - A), B), [look(A, B), look(A / 2, B)]),
    "copy-through": (
        look(A + 0.01, B, source=A, scores=STRONG),
        [look(A + 0.1, B, source=A, scores=STRONG), look(A, A + 0.01, source=A, paired=True),
         look(A, B, source=A, scores=scores(0.0, 0.0, slope=0.0))],
    ),
    "color inversion": (
        look(B - A, A, source=A),
        [look(B, A, source=A), look(A + B, A, source=A), look(-A, -A, source=A, paired=True)],
    ),
    "content lost": (Content(0.4, untranslated=0.5), [Content(0.6, untranslated=0.5)]),
    "checkerboard": (look(B + 0.02 * CHECKERS, A), [look(B, A), look(B + CHECKERS, A + CHECKERS)]),
    "saturation": (look((B * 9).clamp(-1, 1), A), [look(B, A), look((B * 9).clamp(-1, 1), (A * 9).clamp(-1, 1))]),
    "flat output": (look(B / 20, A), [look(B, A), look(B / 20, A / 20)]),
    "hidden signal": (
        look(B, A, cycle=cycle(photos(4))),
        [look(B, A, cycle=cycle(photos(3) + 0.02)), look(B, A)],
    ),
    "attention unused": (Attention(-0.001, 0.5), [Attention(-0.2, 0.5)]),
    "attention uniform": (Attention(0.2, 0.9999), [Attention(0.2, 0.98)]),
    "fp16 overflow": (LossScale(2.0**16, 2.0**13, 100), [LossScale(2.0**16, 2.0**15, 2000), LossScale(1.0, 2.0, 9)]),
    "data starved": (StepTimes(steps=1.0, waiting=3.0), [StepTimes(steps=3.0, waiting=1.0), StepTimes(0.0, 0.0)]),
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_finds_its_fault_and_no_other(check):
    faulty, healthy = CASES[check.name]
    assert check.finds(check.measure(faulty))
    for seen in healthy:
        figure = check.measure(seen)
        assert figure is None or not check.finds(figure), figure


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_found_by_its_check_alone(name):
    faulty = CASES[name][0]
    figures = {check: check.measure(faulty) for check in CHECKS if isinstance(faulty, check.of)}
    assert [check.name for check, figure in figures.items() if figure is not None and check.finds(figure)] == [name]


def test_accuracy_is_the_share_of_ordered_pairs():
    real, fake = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[0.0, 2.0]])
    pairs = [0.5 if a == b else float(a > b) for a in real.tolist() for b in fake.flatten().tolist()]
    assert accuracy(Scores(real, fake, real)) == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize("period", [2, 4, 8])
def test_grids_of_upsamplings_are_found_on_images_of_any_size(period):
    for size in (64, 72, 256):
        stripes = torch.ones(size, size)
        stripes[:, ::period] = -1
        plain, other = photos(5, 1, size), photos(6, 1, size)
        assert grid_strength(look(plain, other)) < 10 < grid_strength(look(plain + 0.05 * stripes, other))
    assert grid_strength(look(photos(5, 1, 31), photos(6, 1, 31))) is None


# ---- a run


class Stub(BaseModel):
    """A model whose translations and discriminator a test provides."""

    def __init__(self, score=None, back=None):
        super().__init__()
        self.score, self.net = score, back or nn.Identity()
        self.optimization = Optimization(torch.device("cpu"))

    def generator_views(self):
        return {"G": GeneratorView("fake_B", "real_B", "real_A", score=self.score, back=self.net)}


def findings(model, images, *, looks=8, start=2000, step=200, health=None):
    """The names of what is found in so many looks at the same images, after a warm-up."""
    health = health or Health(model, {})
    found = []
    for number in range(looks):
        found += health.look(start + number * step, {"G": torch.tensor(1.0)}, images)
    return [(finding.check, finding.subject, finding.over) for finding in found]


class Amplifier(nn.Module):
    """Reads an image from the last decimals of another."""

    def forward(self, x):
        return (x * 256 - (x * 256).round()) * 2


class Brightness(nn.Module):
    """Judges the mean brightness: `steep` makes the logit insensitive far from 0."""

    def __init__(self, steep):
        super().__init__()
        self.steep = steep

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return 5 * torch.tanh(60 * mean) if self.steep else 10 * mean


def test_a_signal_hidden_below_8_bits_is_found():
    hidden = (B * 256).round() / 256 + A / 2 / 256 * 0.9
    images = {"real_A": A, "real_B": B, "fake_B": hidden}
    assert findings(Stub(back=Amplifier()), images) == [("hidden signal", "G", False)]
    assert findings(Stub(back=nn.Identity()), images) == []


@pytest.mark.parametrize(("steep", "expected"), [(True, [("discriminator wins", "G", False)]), (False, [])])
def test_a_discriminator_without_a_gradient_is_found(steep, expected):
    score, gray = Brightness(steep), B * 0.4 - (B * 0.4).mean((1, 2, 3), keepdim=True)
    images = {"real_A": A, "real_B": gray + 0.05, "fake_B": gray - 0.05}
    assert findings(Stub(score=lambda images, label: score(images[label])), images) == expected


def test_nothing_is_found_in_the_warm_up():
    images = {"real_A": A, "real_B": B, "fake_B": torch.zeros_like(A)}
    assert findings(Stub(), images, start=0, step=50) == []
    assert findings(Stub(), images) == [("flat output", "G", False)]


def test_a_finding_begins_once_and_ends_once():
    good, bad = ({"real_A": A, "real_B": B, "fake_B": fake} for fake in (B, B / 20))
    health = Health(Stub(), {})
    assert findings(Stub(), good, health=health) == []
    assert findings(Stub(), bad, health=health, looks=30) == [("flat output", "G", False)]
    assert findings(Stub(), good, health=health, looks=30) == [("flat output", "G", True)]
    known = Health(Stub(), {}, [("flat output", "G")])
    assert findings(Stub(), bad, health=known, looks=30) == []


def test_one_odd_look_is_no_finding():
    good, bad = ({"real_A": A, "real_B": B, "fake_B": fake} for fake in (B, B / 20))
    health = Health(Stub(), {})
    for _ in range(6):
        assert findings(Stub(), good, health=health, looks=5) == []
        assert findings(Stub(), bad, health=health, looks=2) == []


def test_diversity_needs_no_batch():
    """With a batch of 1, the images of several looks are compared."""
    health, alike = Health(Stub(), {}), []
    for number in range(16):
        images = {"real_A": A[number % 8, None], "real_B": photos(number, 1), "fake_B": B[:1] + number / 1e4}
        alike += health.look(1000 + number, {"G": torch.tensor(1.0)}, images)
    assert [finding.check for finding in alike] == ["mode collapse"]


def test_waiting_overflow_and_attention_are_seen():
    health = Health(Stub(), {"num_threads": 0, "precision": "fp16", "attn_G": "bottleneck"})
    images = {"real_A": A, "real_B": B, "fake_B": B}
    found = []
    for number in range(8):
        health.count(seconds=1, waiting=4)
        health.see({"G block3": Attention(0.0001, 0.5)})
        found += health.look(6000 + 100 * number, {"G": torch.tensor(1.0)}, images, loss_scale=2.0 ** (16 - 2 * number))
    assert [(finding.check, finding.advice) for finding in found] == [
        ("attention unused", "Try --attn_G none."),
        ("data starved", "Try --num_threads 4."),
    ]
    health.look(8000, {"G": torch.tensor(1.0)}, images, loss_scale=1.0)
    assert ("fp16 overflow", "") in health.ongoing


def test_the_loss_scale_is_that_of_fp16():
    cpu = torch.device("cpu")
    assert Optimization(cpu).loss_scale() is None
    assert Optimization(cpu, precision="fp16").loss_scale() == 2**16


# ---- every model


def flags(model):
    named = ["--model", model, "--dataroot", "."]
    if model == "sagan":
        return [*named, "--batch_size", "2", "--netG", "sagan", "--diffaugment", "color"]
    return [*named, "--norm", "batch", "--pool_size", "1"]


def batch(model):
    images = random_batch(2)
    if model == "colorization":
        images = {"A": images["A"][:, :1], "B": images["B"][:, :2]}
    return images


@pytest.mark.parametrize("name", MODELS)
def test_looking_changes_no_training(name):
    digests = []
    for looks in (False, True):
        model = training_model(*flags(name), "--ema_decay", "0.9")
        health = Health(model, {})
        torch.manual_seed(3)
        for step in range(3):
            model.optimization.begin_step(share=1.0, progress=0.0, images=1, images_before=0)
            losses, images = model.step(batch(name))
            if looks:
                before = [module.training for module in model.modules()]
                health.look(1000 + step, losses, images)
                assert [module.training for module in model.modules()] == before
                assert health.figures
        state = training_state(model, model.optimization)
        digests.append((digest(model.state_dict()), digest(state), digest(torch.get_rng_state())))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_shows_its_generators(name):
    model = training_model(*flags(name))
    _, images = model.step(batch(name))
    views = model.generator_views()
    assert views
    for view in views.values():
        assert {view.fake, view.real} <= images.keys()
        assert images[view.fake].shape[1:] == images[view.real].shape[1:]
        assert view.source == "" or images[view.source].shape == images[view.fake].shape
        if view.score:
            with torch.no_grad(), evaluating(model):
                assert view.score(images, view.fake).shape == view.score(images, view.real).shape
        assert view.back is None or view.back(images[view.fake]).shape == images[view.source].shape


def test_the_cost_does_not_grow_with_the_batch():
    sizes = []
    score = lambda images, label: sizes.append(len(images[label])) or images[label].mean((1, 2, 3))  # noqa: E731
    many = torch.cat([A, B])
    Health(Stub(score=score), {}).look(
        1000, {"G": torch.tensor(1.0)}, dict.fromkeys(("real_A", "real_B", "fake_B"), many)
    )
    assert set(sizes) == {IMAGES}


# ---- from the training loop to the console, the log, the page and the report


@pytest.fixture
def eager_checks(monkeypatch):
    """Checks that judge from the first step on, after two looks."""
    checks = tuple(replace(check, warm_up=0, looks=2) for check in CHECKS if check.name == "flat output")
    monkeypatch.setattr(training.health, "CHECKS", checks)


def test_a_finding_is_shown_once_and_a_resumed_run_does_not_repeat_it(tiny_data, tmp_path, eager_checks, capsys):
    flags = ["--dataroot", tiny_data, "--init_gain", "1e-9", "--lr", "1e-9", "--health_freq", "1"]
    run_dir = train(tmp_path, *flags)
    out = capsys.readouterr().out
    assert out.count("health: flat output. G_A: the images are nearly uniform (contrast 0.00 of") == 1
    assert out.count("health: flat output. G_B:") == 1
    shown = [event for event in LogReader(run_dir / "events.jsonl").read() if isinstance(event, HealthEvent)]
    assert [(event.subject, event.images, event.over) for event in shown] == [("G_A", 2, False), ("G_B", 2, False)]
    page = (run_dir / "web" / "index.html").read_text()
    assert page.count("<b>flat output</b>") == 2 and "since epoch 1, image 2" in page

    train(tmp_path, "--continue_train", "--n_epochs", "2")
    assert "health:" not in capsys.readouterr().out
    again = [event for event in LogReader(run_dir / "events.jsonl").read() if isinstance(event, HealthEvent)]
    assert again == shown

    arguments = ["--name", "run", "--checkpoints_dir", str(tmp_path)]
    assert report.main(arguments) == 0
    assert re.search(
        r"flat output, since epoch 1, image 2\n  G_A: .* real images\)\. Try --lr_G 5e-10 or --lr_D 5e-10\.\n",
        capsys.readouterr().out,
    )


def test_health_freq_0_looks_never(tiny_data, tmp_path, eager_checks, capsys):
    flags = ["--dataroot", tiny_data, "--init_gain", "1e-9", "--health_freq", "0"]
    run_dir = train(tmp_path, *flags)
    assert "health:" not in capsys.readouterr().out
    report.main(["--name", "run", "--checkpoints_dir", str(run_dir.parent)])
    assert capsys.readouterr().out == "no findings\n"


def test_a_run_without_a_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no events\.jsonl\. Check --name"):
        report.main(["--name", "nothing", "--checkpoints_dir", str(tmp_path)])


# ---- what to try


def test_advice_has_values_for_this_run():
    tries = Try("lr_D", factor=0.5), Try("spectral_norm_D", True), Try("attn_D", "none", subjects="D")
    check = replace(CHECKS[0], tries=tries)
    options = {"lr_D": 0.0002, "spectral_norm_D": False, "attn_D": "bottleneck"}
    assert check.advice(options, "G_A") == "Try --lr_D 0.0001 or --spectral_norm_D."
    assert check.advice(options | {"lr_D": 0.0, "spectral_norm_D": True}, "D_A") == "Try --attn_D none."
    assert check.advice({}, "D_A") == ""
    assert Try("num_threads", factor=2, at_least=4).words({"num_threads": 0}) == "--num_threads 4"


def test_advice_parses():
    """Each flag to try belongs to some model, and its value is one that the parser takes."""
    left = {attempt.flag for check in CHECKS for attempt in check.tries}
    for model in MODELS:
        given = [*TINY, "--model", model, "--dataroot", "."]
        unused = find_class("models", model).unused_flags
        options = {flag: value for flag, value in TrainOptions().parse(given).as_dict().items() if flag not in unused}
        for check in CHECKS:
            for attempt in check.tries:
                if words := attempt.words(options):
                    TrainOptions().parse([*given, *words.split()])
                    left.discard(attempt.flag)
    assert left <= {"precision"}  # has no better value on a run in fp32


def test_the_docs_list_every_check():
    text = (ROOT / "docs" / "health.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)[1:]
    assert rows == [row(check) for check in CHECKS]


def row(check: Check) -> tuple[str, ...]:
    """The row of a check in docs/health.md."""
    tried = ", ".join(f"`--{attempt.flag}`" for attempt in check.tries)
    return check.name, f"{'≥' if check.above else '≤'} {check.threshold:g}", f"{check.warm_up:,}", check.reason, tried
