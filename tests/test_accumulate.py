"""Gradient accumulation: several batches a step equal one batch as large, where no batch statistics are involved."""

import pytest
import torch
from torch import Tensor, nn

from data import create_dataset
from data.image_folder import DataError
from models.base_model import BaseModel
from options.train_options import TrainOptions
from tests.conftest import draw_shapes
from tests.helpers import default_dtype, training_model
from training.optimization import Optimization
from util import distributed

SAGAN = ["--model", "sagan", "--netG", "sagan", "--netD", "sagan", "--no-spectral_norm_G", "--no-spectral_norm_D"]
PENALTIES = ["--lambda_r1", "1", "--lambda_r2", "1", "--penalty_every", "2", "--ema_halflife", "10"]


def model_of(*flags: str) -> BaseModel:
    """A model in float64, whose batch norm takes running statistics."""
    model = training_model(*flags).double()
    for net in model.modules():
        if isinstance(net, nn.BatchNorm2d):
            net.eval()
    return model


def trajectory(model: BaseModel, batches: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """The losses of each step, counted in images as train.py does."""
    torch.manual_seed(1)
    assert isinstance(model.optimization, Optimization)
    made, seen = [], 0
    for batch in batches:
        size = len(batch["A"])
        model.optimization.begin_step(share=1.0, progress=seen / 18, images=size, images_before=seen)
        losses, _ = model.step(batch)
        made.append({name: loss.item() for name, loss in losses.items()})
        seen += size
    return made


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "cycle_gan_attn", "--pool_size", "0", "--identity_decay", *PENALTIES],
        ["--model", "cycle_gan", "--gan_mode", "relativistic", "--norm", "none"],
        ["--model", "pix2pix", "--dataroot", ".", "--norm", "instance", "--no_dropout", "--netG", "resnet_6blocks"],
        ["--model", "template", "--norm", "instance", "--no_dropout"],
        ["--model", "cut", "--num_patches", "100000"],
        [*SAGAN, "--d_steps", "2", *PENALTIES],
        [*SAGAN, "--gan_mode", "relativistic"],
    ],
    ids=["cycle_gan_attn", "relativistic", "pix2pix", "template", "cut", "sagan", "sagan relativistic"],
)
def test_three_batches_of_two_equal_a_batch_of_six(flags):
    with default_dtype(torch.float64):
        batches = [{side: torch.rand(6, 3, 32, 32) * 2 - 1 for side in "AB"} for _ in range(3)]
        models = [
            model_of(*flags, *size) for size in (["--batch_size", "6"], ["--batch_size", "2", "--accumulate", "3"])
        ]
        whole, split = (trajectory(model, batches) for model in models)
    for a, b in zip(split, whole, strict=True):
        assert a == pytest.approx(b, rel=1e-8)
    weights = [dict(model.named_parameters()) for model in models]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-8)
    moments = [
        [
            values["exp_avg"]
            for optimizer in model.optimization.optimizers.values()
            for values in optimizer.state.values()
        ]
        for model in models
    ]
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-6, atol=1e-12)


def test_micro_batches_hold_what_a_batch_holds():
    model = training_model("--model", "cycle_gan", "--batch_size", "2", "--accumulate", "3")
    batch = {"A": torch.arange(5.0), "A_paths": list("abcde")}
    micro_batches = model.micro_batches(batch)
    assert [micro.batch["A_paths"] for micro in micro_batches] == [["a", "b"], ["c", "d"], ["e"]]
    assert torch.equal(torch.cat([micro.batch["A"] for micro in micro_batches]), batch["A"])
    assert [micro.share for micro in micro_batches] == [0.4, 0.4, 0.2]
    assert [micro.batch for micro in training_model("--model", "cycle_gan").micro_batches(batch)] == [batch]


def test_a_step_loads_all_its_batches(tiny_data):
    flags = ["--dataroot", str(tiny_data), "--load_size", "36", "--crop_size", "32", "--batch_size", "2"]
    loader = create_dataset(TrainOptions().parse([*flags, "--accumulate", "2"]))
    loader.sampler.set_epoch(1)
    assert [len(batch["A"]) for batch in loader] == [4, 1]
    assert [loader.sampler.step_size(seen) for seen in (0, 4)] == [4, 1]


def test_images_of_several_sizes_cannot_be_accumulated(tmp_path):
    for folder in ("trainA", "trainB"):
        (tmp_path / folder).mkdir()
        for number, size in enumerate(((40, 36), (44, 36))):
            draw_shapes(f"{folder}{number}", size).save(tmp_path / folder / f"{number}.png")
    flags = ["--dataroot", str(tmp_path), "--preprocess", "none", "--accumulate", "2"]
    with pytest.raises(DataError, match=r"^--accumulate 2 needs images of one size") as error:
        create_dataset(TrainOptions().parse(flags))
    assert error.value.remedy == {"batch_size": 1, "accumulate": 1}


def test_statistics_of_several_processes_cannot_be_accumulated(monkeypatch):
    """An uneven last step has as many batches as a process has images, so processes would wait for each other."""
    flags = ["--model", "cycle_gan", "--norm", "syncbatch"]
    training_model(*flags, "--accumulate", "2")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    training_model(*flags)
    with pytest.raises(ValueError, match=r"^--accumulate 2 and --norm syncbatch .*: use --norm instance or batch, or"):
        training_model(*flags, "--accumulate", "2")
