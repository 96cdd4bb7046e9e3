"""CUT and FastCUT: the contrastive loss against its formula, the layers and heads, CUT's own checkpoints."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from models.contrastive import flipped_positions, patch_nce
from models.networks.infer import infer_network
from models.networks.resnet import ResnetGenerator
from models.weights import load_weights
from tests.helpers import random_batch, training_model
from training.resume import load_training_state, training_state

ALL = ["--num_patches", "10000"]  # more than there are, so that the loss does not depend on the drawn order


def reference_nce(netG: ResnetGenerator, netF: nn.Module, real: Tensor, fake: Tensor, flipped: bool = False) -> float:
    """The formula of the paper for all positions of layers 0, 4, 8, 12 and 16, patch by patch in float64."""
    net, heads = copy.deepcopy(netG).double(), copy.deepcopy(netF).double()
    total = 0.0
    with torch.no_grad():
        x, y = real.double(), fake.double()
        layers = 0, 4, 8, 12, 16
        for index in range(layers[-1] + 1):
            x, y = net.model[index](x), net.model[index](y)
            if index not in layers:
                continue
            head = heads.get_submodule(f"mlp_{layers.index(index)}")
            pair = x, y.flip(3) if flipped else y
            keys, queries = (head(maps.permute(0, 2, 3, 1).flatten(1, 2)) for maps in pair)
            loss = 0.0
            for image in range(len(real)):
                v, q = ((vectors[image] / vectors[image].norm(dim=1, keepdim=True)) for vectors in (keys, queries))
                scores = (q @ v.T / 0.07).exp()
                loss += -(scores.diag() / scores.sum(1)).log().mean().item()
            total += loss / len(real)
    return total / 5


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03)])
@pytest.mark.parametrize("model", ["cut", "fastcut"])
def test_the_losses_of_a_step_follow_the_formula(model, precision, tolerance):
    nets = training_model("--model", model, *ALL, "--init_gain", "1", "--lr", "1e-9", "--precision", precision)
    batch = random_batch(2)
    seen = set()
    for _ in range(4 if model == "fastcut" else 1):
        losses, images = nets.step(batch)
        flipped = not torch.equal(images["real_A"], batch["A"])
        seen.add(flipped)
        assert torch.equal(images["real_A"], batch["A"].flip(3) if flipped else batch["A"])
        weight = 10 if model == "fastcut" else 1
        expected = weight * reference_nce(nets.netG, nets.netF, batch["A"], images["fake_B"], flipped)
        assert losses["NCE"].item() == pytest.approx(expected, rel=tolerance)
        assert ("NCE_Y" in losses) == ("idt_B" in images) == (model == "cut")
        if model == "cut":
            expected = reference_nce(nets.netG, nets.netF, batch["B"], images["idt_B"])
            assert losses["NCE_Y"].item() == pytest.approx(expected, rel=tolerance)
    assert seen == ({False, True} if model == "fastcut" else {False})


def test_the_gradient_is_that_of_the_mean_of_both_contrastive_losses_and_of_gan():
    """Keys get no gradient: G learns from the translation alone."""
    model = training_model("--model", "cut", *ALL, "--init_gain", "1", "--lr", "1e-15").double()
    batch = {side: images.double() for side, images in random_batch().items()}
    model.step(batch)
    names = [name for name, _ in model.named_parameters() if not name.startswith("netD")]
    made = {name: model.get_parameter(name).grad.clone() for name in names}
    model.zero_grad()
    total = ((model.netD(fake := model.netG(batch["A"])) - 1) ** 2).mean()
    for real, translated in ((batch["A"], fake), (batch["B"], model.netG(batch["B"]))):
        for head, key, query in zip(
            model.netF.children(), model.netG(real, model.layers), model.netG(translated, model.layers), strict=True
        ):
            k, q = (nn.functional.normalize(head(x.flatten(2).mT), dim=2) for x in (key, query))
            logits = torch.einsum("bqc,bkc->bqk", q, k.detach()) / 0.07
            total = total - logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean() / 5 / 2
    total.backward()
    for name in names:
        torch.testing.assert_close(made[name], model.get_parameter(name).grad, rtol=1e-5, atol=1e-9, msg=name)


def test_the_heads_learn_from_both_contrastive_losses_in_bf16():
    gradients = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = training_model("--model", "cut", *ALL, "--init_gain", "1", "--lr", "1e-15", "--precision", precision)
        model.step(random_batch())
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.netF.parameters()]))
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
    torch.testing.assert_close(gradients[1].norm(), gradients[0].norm(), rtol=0.1, atol=0)


def test_patches_that_match_cost_nothing_and_equal_ones_the_logarithm_of_their_number():
    vectors = torch.eye(8).unsqueeze(0)
    assert patch_nce([vectors], [vectors]).item() == pytest.approx(math.log(1 + 7 * math.exp(-1 / 0.07)), abs=1e-6)
    alike = torch.ones(2, 8, 4) / 2
    assert patch_nce([alike, alike], [alike, alike]).item() == pytest.approx(math.log(8))


def test_flipped_positions():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    positions = torch.randperm(12)
    (mirror,) = flipped_positions([positions], [maps])
    assert torch.equal(maps.flip(3).flatten()[mirror], maps.flatten()[positions])


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ("--netG resnet_9blocks", (0, 4, 8, 12, 16)),
        ("--resample deconv", (0, 4, 7, 10, 14)),
        ("--nce_layers 12,0", (0, 12)),
    ],
)
def test_layers_and_heads(flags, layers):
    model = training_model("--model", "cut", *flags.split())
    assert model.layers == layers
    features = model.netG(torch.zeros(1, 3, 32, 32), layers)
    assert [head[0].in_features for head in model.netF.children()] == [x.shape[1] for x in features]
    image = random_batch()["A"]
    *_, made = model.netG(image, (*layers, len(model.netG.model) - 1))
    assert torch.equal(made, model.netG(image))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--netG unet_128", "--netG unet_128: .* encoder of a ResNet"),
        ("--nce_layers 0,18", "--nce_layers 0,18: layer 18: the encoder of this generator has layers 0 to 17"),
        ("--input_nc 1", "--input_nc 1 and --output_nc 3 differ"),
    ],
)
def test_flags_that_do_not_suit(flags, message):
    with pytest.raises(ValueError, match=message):
        training_model("--model", "cut", *flags.split())


def test_checkpoints_of_cut_load(tmp_path):
    """Names and shapes as in its latest_net_G.pth, latest_net_F.pth and latest_net_D.pth (9 blocks, antialiased)."""
    model = training_model("--model", "cut", "--netG", "resnet_9blocks", "--ngf", "64", "--ndf", "64")
    conv, both = [1, 4, 8, 22, 26, 30], ("weight", "bias")
    names = {
        "netG": [f"model.{i}.{kind}" for i in conv for kind in both]
        + [f"model.{i}.conv_block.{j}.{kind}" for i in range(12, 21) for j in (1, 5) for kind in both]
        + [f"model.{i}.filt" for i in (7, 11, 21, 25)],
        "netF": [f"mlp_{i}.{j}.{kind}" for i in range(5) for j in (0, 2) for kind in both],
        "netD": [f"model.{i}.{kind}" for i in (0, 3, 7, 11, 14) for kind in both]
        + [f"model.{i}.filt" for i in (2, 6, 10)],
    }
    for name, net in model.named_children():
        assert sorted(net.state_dict()) == sorted(names[name]), name
        weights = {key: torch.rand_like(value) for key, value in net.state_dict().items()}
        torch.save(weights, tmp_path / f"latest_{name.replace('net', 'net_')}.pth")
        assert load_weights(net, tmp_path / f"latest_{name.replace('net', 'net_')}.pth")
        assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert [model.netF.get_submodule(f"mlp_{i}")[0].in_features for i in range(5)] == [3, 128, 256, 256, 256]
    assert model.netG.model[30].bias.shape == (3,)
    assert infer_network(model.netF.state_dict()) == {"netF_nc": 256}


@pytest.mark.parametrize("flags", ["--model cut_attn --batch_head 2", "--model fastcut --pool_size 2"])
def test_a_step_from_restored_state_is_bit_identical(flags):
    flags = [*flags.split(), "--ema_decay", "0.99", "--num_patches", "16"]
    model = training_model(*flags)
    for _ in range(3):
        model.step(random_batch(2))
    state, weights, random = training_state(model, model.optimization), model.state_dict(), torch.get_rng_state()
    copied = copy.deepcopy((state, weights))
    expected, _ = model.step(random_batch(2))

    resumed = training_model(*flags, "--init_gain", "0.5")
    load_training_state(resumed, resumed.optimization, copied[0], epoch=1)
    resumed.load_state_dict(copied[1])
    torch.set_rng_state(random)
    losses, _ = resumed.step(random_batch(2))
    assert {name: loss.item() for name, loss in losses.items()} == {n: loss.item() for n, loss in expected.items()}
