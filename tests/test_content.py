"""The loss of kept content, by the rules that find classes of pixels."""

import pytest
import torch

from models.content import SOFTNESS, ContentLoss
from options.train_options import TrainOptions, changed_flags
from tests.helpers import random_batch, training_model
from util.rules import parse_rule

SEA = "sea: A(B - G > 15, B > 150); B(not R >= 90 or 20 < B <= 40)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_by_its_formula(dtype):
    torch.manual_seed(0)
    source, translation = (torch.rand(2, 3, 5, 6) * 2 - 1).to(dtype), (torch.rand(2, 3, 5, 6) * 2 - 1).to(dtype)
    _, G, B = ((source.float() + 1) * 127.5).unbind(1)
    target = ((B - G > 15) & (B > 150)).float()
    assert 0 < target.mean() < 1
    R, _, B = ((translation.float() + 1) * 127.5).unbind(1)
    margin = torch.maximum(90 - R, torch.minimum(B - 20, 40 - B))
    inside = torch.sigmoid(margin / SOFTNESS).double()
    expected = -(target * inside.log() + (1 - target) * (1 - inside).log()).mean().item()
    made = ContentLoss([parse_rule(SEA)])(source, translation, domain="A")
    assert made.dtype == torch.float32 and made.item() == pytest.approx(expected, rel=1e-3)
    back = ContentLoss([parse_rule(SEA).swapped()])(source, translation, domain="B")
    torch.testing.assert_close(back, made)


def test_pixels_move_to_the_class_of_their_source():
    source = torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(3, 4, 4)[None]  # blue: sea
    image = torch.zeros(1, 3, 4, 4, requires_grad=True)
    loss, rule = ContentLoss([parse_rule("sea: B > R + 35")]), parse_rule("sea: B > R + 35")
    for _ in range(50):
        (gradient,) = torch.autograd.grad(loss(source, image, domain="A"), image)
        image = (image - 0.5 * gradient).detach().requires_grad_()
    assert rule.mask("B", dict(zip("RGB", (image[0] + 1) * 127.5, strict=True))).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_a_step_has_the_loss_of_both_directions(direction, precision):
    flags = ["--lambda_content", "3", "--content", SEA, "dark: R < 100", "--direction", direction]
    model, batch = training_model("--model", "cycle_gan", *flags, "--precision", precision), random_batch(2)
    losses, images = model.step(batch)
    rules = [parse_rule(SEA), parse_rule("dark: R < 100")]
    loss = ContentLoss([rule.swapped() for rule in rules] if direction == "BtoA" else rules)
    expected = [3 * loss(images[f"real_{side}"], images[f"fake_{other}"], domain=side) for side, other in ("AB", "BA")]
    torch.testing.assert_close([losses["content_A"], losses["content_B"]], expected)
    assert "content_A" not in training_model("--model", "cycle_gan").step(batch)[0]


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("model_name", ["cut", "fastcut"])
def test_a_step_of_cut_has_the_loss_of_its_direction(model_name, direction):
    flags = ["--lambda_content", "3", "--content", SEA, "--direction", direction]
    for seed in range(4):  # fastcut flips images in some of the steps
        model, batch = training_model("--model", model_name, *flags, "--seed", str(seed)), random_batch(2)
        losses, images = model.step(batch)
        rule = parse_rule(SEA).swapped() if direction == "BtoA" else parse_rule(SEA)
        expected = 3 * ContentLoss([rule])(images["real_A"], images["fake_B"], domain="A")
        torch.testing.assert_close(losses["content"], expected)


def test_the_loss_reaches_the_weights_of_cut():
    changed = []
    for weight in ("0", "3"):
        torch.manual_seed(0)
        model, batch = training_model("--model", "cut", "--lambda_content", weight, "--content", SEA), random_batch(1)
        model.step(batch)
        changed.append(torch.cat([parameter.detach().flatten() for parameter in model.netG.parameters()]))
    assert not torch.equal(*changed)


def test_a_resumed_run_keeps_the_rules_of_its_loss():
    for weight, free in (("0", True), ("1", False)):
        flags = ["--lambda_content", weight, "--content"]
        saved = TrainOptions().parse([*flags, "sea: B > R"]).as_dict()
        changed = changed_flags(TrainOptions().parse([*flags, "sea: B > R + 35"], saved), saved)
        assert (not any(flag.startswith("--content") for flag in changed)) == free


def test_rules_are_needed_for_both_domains():
    with pytest.raises(ValueError, match=r"--lambda_content 1.0: the content loss needs rules, such as content='sea"):
        training_model("--model", "cycle_gan", "--lambda_content", "1")
    with pytest.raises(ValueError, match="content: the rule of sea has no condition for domain B"):
        training_model("--model", "cycle_gan", "--lambda_content", "1", "--content", "sea: A(B > R)")
    with pytest.raises(ValueError, match="gray or color images, and these have 2 channels"):
        ContentLoss([parse_rule("sea: B > R")])(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), domain="A")
