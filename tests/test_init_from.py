"""--init_from: models that start from earlier weights."""

import shutil

import pytest
import torch

import train as training
from tests.helpers import random_batch, training_model
from tests.test_cli import train
from training.checkpoints import save_checkpoint
from training.init_from import init_from
from util.errors import RemediedError


@pytest.fixture
def old_run(tmp_path):
    """A CycleGAN with weights of its own, and the folder it is saved in."""
    model = training_model("--model", "cycle_gan", "--seed", "9")
    (tmp_path / "old").mkdir()
    save_checkpoint(model, tmp_path / "old", "latest", {})
    return model, tmp_path / "old"


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether b has all weights of a."""
    weights = b.state_dict()
    return all(key in weights and torch.equal(value, weights[key]) for key, value in a.state_dict().items())


def test_all_networks_gain_attention_and_images_stay_identical(old_run):
    old, folder = old_run
    new = training_model("--model", "cycle_gan_attn", "--ema_decay", "0.9")
    report = init_from(new, folder, "latest")
    assert all(equal(net, new.get_submodule(name)) for name, net in old.named_children())
    assert equal(old.netG_A, new.netG_A_ema)
    before, after = old(random_batch()), new(random_batch())
    assert all(torch.equal(before[label], after[label]) for label in before)
    x = random_batch()["B"]
    assert torch.equal(old.netD_A(x), new.netD_A(x))
    assert report.count("new attention blocks start with gamma 0") == 4
    assert "is missing" not in report


def test_a_run_without_discriminators(old_run):
    old, folder = old_run
    for path in folder.glob("*_D_*.pth"):
        path.unlink()
    new = training_model("--model", "cycle_gan_attn")
    report = init_from(new, folder, "latest")
    assert equal(old.netG_B, new.netG_B) and not equal(old.netD_A, new.netD_A)
    assert "netD_A keeps its random weights" in report and "netG_A takes 36 of 43 tensors" in report


def test_the_other_direction_swaps_networks(old_run):
    old, folder = old_run
    new = training_model("--model", "cycle_gan")
    init_from(new, folder, "latest", reverse=True)
    assert equal(old.netG_A, new.netG_B) and equal(old.netD_B, new.netD_A)


@pytest.mark.parametrize(
    ("name", "network"),
    [("latest_net_G_B.pth", "netG_B"), ("latest_net_G.pth", "netG_A"), ("horse2zebra.pth", "netG_A")],
)
def test_a_file_goes_to_the_network_of_its_name_or_the_first_it_fits(old_run, tmp_path, name, network):
    old, folder = old_run
    shutil.copy(folder / "latest_net_G_A.pth", tmp_path / name)
    new = training_model("--model", "cycle_gan")
    report = init_from(new, tmp_path / name, "latest")
    assert [key for key, net in new.named_children() if equal(old.netG_A, net)] == [network]
    assert report.count("keeps its random weights") == 3


def test_a_file_of_a_discriminator_goes_to_a_discriminator(old_run, tmp_path):
    old, folder = old_run
    new = training_model("--model", "cycle_gan")
    init_from(new, shutil.copy(folder / "latest_net_D_B.pth", tmp_path / "any.pth"), "latest")
    assert equal(old.netD_B, new.netD_A)


def test_weights_that_do_not_fit_are_listed(old_run):
    _, folder = old_run
    new = training_model("--model", "cycle_gan", "--output_nc", "1", "--lambda_identity", "0")
    before = {key: value.clone() for key, value in new.state_dict().items()}
    with pytest.raises(RemediedError, match="another network, so only a part would be loaded:\n") as caught:
        init_from(new, folder, "latest")
    assert "The file looks like output_nc=3; the network has output_nc=1" in str(caught.value)
    assert caught.value.flags() == ["--init_partial"]
    assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items()), "none is half loaded"
    report = init_from(new, folder, "latest", partial=True)
    assert "netG_A takes 34 of 36 tensors" in report
    assert "model.23.weight is (3, 8, 7, 7), not (1, 8, 7, 7)" in report
    assert "The file looks like output_nc=3; the network has output_nc=1" in report


def test_weights_of_cut_are_taken_by_networks_of_cut_alone(tmp_path):
    old = training_model("--model", "cycle_gan", "--resample", "blur", "--seed", "9")
    torch.save(old.netG_A.state_dict(), tmp_path / "latest_net_G.pth")
    with pytest.raises(RemediedError, match="file looks like resample=blur; the network has resample=deconv"):
        init_from(training_model("--model", "cycle_gan"), tmp_path / "latest_net_G.pth", "latest")
    new = training_model("--model", "cycle_gan", "--resample", "blur")
    init_from(new, tmp_path / "latest_net_G.pth", "latest")
    assert equal(old.netG_A, new.netG_A)


def test_no_weights_that_fit_are_an_error(old_run, tmp_path):
    _, folder = old_run
    (tmp_path / "empty").mkdir()
    model = training_model("--model", "cycle_gan")
    with pytest.raises(ValueError, match="holds no weights, nothing for netG_A, netG_B"):
        init_from(model, tmp_path / "empty", "latest")
    with pytest.raises(ValueError, match=r"latest_net_D_A.pth.* at 5"):
        init_from(model, folder, "5")
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has no weights that fit:\n"):
        init_from(model, tmp_path / "other.pth", "latest")


def test_train_starts_from_a_run_by_its_name(tiny_data, tmp_path, capsys):
    flags = ["--dataroot", tiny_data, "--n_epochs_decay", "0", "--max_dataset_size", "1"]
    old = train(tmp_path, *flags).rename(tmp_path / "old")
    before = torch.load(old / "latest_net_G_A.pth", weights_only=True)
    new = train(tmp_path, *flags, "--model", "cycle_gan_attn", "--init_from", "old", "--lr", "1e-9")
    after = torch.load(new / "latest_net_G_A.pth", weights_only=True)
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert after.keys() - before.keys()
    assert "netG_A takes 36 of 43 tensors from" in capsys.readouterr().out
    training.main(["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train", "--n_epochs", "2"])
    assert "takes" not in capsys.readouterr().out, "a resumed run does not load them again"


def test_mistakes(tiny_data, tmp_path, capsys):
    with pytest.raises(ValueError, match="--init_from nothing: no such file or folder, nor a run in"):
        train(tmp_path, "--dataroot", tiny_data, "--init_from", "nothing")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="the new run would overwrite it"):
        train(tmp_path, "--dataroot", tiny_data, "--init_from", "run")
    (tmp_path / "run" / "latest_net_G_A.pth").touch()
    with pytest.raises(SystemExit):
        train(tmp_path, "--dataroot", tiny_data, "--init_from", "run", "--continue_train")
    assert "omit one of them" in capsys.readouterr().err
