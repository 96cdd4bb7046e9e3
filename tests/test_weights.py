"""Files of weights: of upstream and earlier versions, of other networks, damaged or malicious."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from models.base_model import BaseModel
from models.networks import DISCRIMINATORS, GENERATORS
from models.networks.infer import infer_network
from models.weights import load_weights, read_weights
from tests.golden.fill import fill
from tests.test_networks import GOLDEN, build_golden, golden_networks
from training.checkpoints import save_checkpoint


def small(**keywords) -> nn.Module:
    return GENERATORS["resnet_6blocks"](3, 3, **{"ngf": 8, **keywords})


def save(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.parametrize("name", golden_networks())
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_files_of_upstream_load_with_any_wrapper_prefix(name, prefix, tmp_path):
    """Names and shapes are those of the reference networks, in the file format of PyTorch before 1.6."""
    net = build_golden(GOLDEN[name]["config"])
    weights = fill({key: torch.zeros(shape) for key, shape in GOLDEN[name]["shapes"].items()})
    content = {prefix + key: value for key, value in weights.items()}
    for place, layer in net.named_modules():
        if isinstance(
            layer, nn.InstanceNorm2d
        ):  # PyTorch before 0.4 saved statistics here, later versions a counter too
            content |= {f"{prefix}{place}.{name}": torch.zeros(8) for name in ("running_mean", "running_var")}
            content |= {f"{prefix}{place}.num_batches_tracked": torch.tensor(0)}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert load_weights(net, tmp_path / "net.pth")
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_batch_norm_of_old_files_has_no_counters(tmp_path):
    net = small(norm="batch")
    weights = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "net.pth")
    assert load_weights(net, tmp_path / "net.pth")
    assert infer_network(read_weights(tmp_path / "net.pth"))["norm"] == "batch"


def test_prefixes_inside_a_name_are_removed(tmp_path):
    net = small()
    mixed = {key.replace("model.1.", "model._orig_mod.1."): value for key, value in net.state_dict().items()}
    torch.save(mixed, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").keys() == net.state_dict().keys()


@pytest.mark.parametrize("name", golden_networks())
def test_files_load_back_into_upstream(name, tmp_path):
    """They contain plain tensors with the names, shapes and order of the reference networks."""
    model = BaseModel()
    model.netG_A = build_golden(GOLDEN[name]["config"])
    save_checkpoint(model, tmp_path, "latest", {})
    saved = torch.load(tmp_path / "latest_net_G_A.pth", weights_only=True)
    assert [(key, list(value.shape)) for key, value in saved.items()] == list(GOLDEN[name]["shapes"].items())
    assert type(saved) is dict and all(type(value) is torch.Tensor for value in saved.values())


@pytest.mark.parametrize(
    ("made", "flags"),
    [
        ({"dropout": True}, "looks like no_dropout=False; the network has no_dropout=True"),
        ({"ngf": 16}, "looks like ngf=16; the network has ngf=8"),
        ({"norm": "batch"}, "looks like norm=batch; the network has norm=instance"),
        ({"resample": "nearest"}, "looks like resample=nearest; the network has resample=deconv"),
        ({"attention": ["up1"]}, "looks like attn_G=up1; the network has attn_G=none"),
    ],
)
def test_another_network_is_named_by_its_arguments(made, flags, tmp_path):
    path = save(small(**made), tmp_path / "old.pth")
    with pytest.raises(ValueError, match=rf"old.pth was made for another network. .*{flags}. First differences: \w+"):
        load_weights(small(), path)


def test_other_kinds_of_network_are_named(tmp_path):
    path = save(GENERATORS["unet_128"](3, 3, ngf=8), tmp_path / "unet.pth")
    with pytest.raises(ValueError, match=r"looks like netG=unet_128, norm=batch; the network has netG=resnet_6blocks"):
        load_weights(small(), path)
    path = save(DISCRIMINATORS["basic"](3, ndf=8), tmp_path / "D.pth")
    with pytest.raises(ValueError, match=r"looks like netD=basic.*; and \d+ more"):
        load_weights(small(), path)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "inside"])
def test_nothing_in_a_file_is_executed(kind, tmp_path):
    path, proof = tmp_path / "evil.pth", tmp_path / "executed"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(proof)))
    else:
        weights = small().state_dict() if kind == "inside" else {}
        torch.save(weights | {"model.1.weight": Malicious(proof)}, path)
    # What PyTorch says of such a file differs from version to version.
    refused = "is not a readable checkpoint of plain tensors, so nothing in it was|holds Python objects .*not loaded"
    with pytest.raises(ValueError, match=f"evil.pth ({refused})"):
        load_weights(small(), path)
    assert not proof.exists()
    with path.open("rb") as file:
        (pickle.load(file) if kind == "pickle" else torch.load(path, weights_only=False))
    assert proof.exists(), "otherwise the file is harmless"


def test_a_pickled_module_is_refused_without_advice_to_load_it_unsafely(tmp_path):
    torch.save(small(), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="ResnetGenerator") as error:
        read_weights(tmp_path / "module.pth")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing"])
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_named(damage, zipped, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>404</html>"}[damage])
    with pytest.raises(
        ValueError, match=r"net.pth(: there is no such file| is not a readable checkpoint| is empty| is a web page)"
    ):
        load_weights(small(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list"),
        ({"epoch": 3}, "it holds 'epoch': int"),
        ({3: torch.zeros(1)}, "it holds 3: Tensor"),
    ],
)
def test_other_contents_are_named(content, message, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / "net.pth")
