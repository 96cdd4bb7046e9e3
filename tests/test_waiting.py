"""Training does not wait for a GPU: between displays, no step reads a value from the device.

The networks are on the meta device, whose tensors have no values: reading one, as `.item()`, `.tolist()` or `if tensor`
do, is an error. It is not a CPU, so the branches are those of GPUs.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from models import create_model
from options.train_options import TrainOptions
from tests.helpers import TINY
from training.finite import LossGuard
from training.optimization import create_optimization
from util.registry import choices

META = torch.device("meta")
MODELS = [name for name in choices("models") if name != "test"]
SMALL = ["--ngf", "8", "--ndf", "8", "--batch_size", "2", "--crop_size", "32", "--load_size", "32", "--dataroot", "."]
PENALTIES = "--gan_mode relativistic --lambda_r1 1 --lambda_r2 1 --lambda_zero_gp 1"
MORE = [
    f"cycle_gan_attn {PENALTIES} --ema_halflife 10 --cycle_noise 0.1 --identity_decay",
    "cycle_gan --gan_mode wgangp --resample blur --batch_head 2 --norm batch",
    "cycle_gan --lambda_content 1 --content sea:A(B>R);B(B>R)",
    "cut --lambda_content 1 --content sea:A(B>R);B(B>R)",
    f"sagan {PENALTIES} --diffaugment color,translation,cutout --minibatch_std --d_steps 2 --ema_decay 0.9",
    "sagan --netG sagan_resnet --netD sagan_resnet",
    "sagan --class_of folder --class_names a b",
    "sagan --netG biggan --netD biggan --class_of folder --class_names a b",
]


class Copies(TorchDispatchMode):
    """Counts the tensors that are copied from the CPU to the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.count += out.device == META and any(tensor.is_cpu for tensor in given)
        return out


@pytest.fixture
def device(monkeypatch):
    """The meta device as a device for training."""
    adam = torch.optim.Adam
    # The loop over weights reads its own step, which is on the CPU; fused Adam, which GPUs use, does not.
    monkeypatch.setattr("training.optimization.Adam", lambda *args, fused, **keywords: adam(*args, **keywords))
    monkeypatch.setattr("training.optimization.autocast", lambda device, precision: nullcontext())
    return META


def flags_of(case: str) -> list[str]:
    name, *flags = case.split()
    flags = ["--model", name, *SMALL, *flags]
    if name == "pix2pix_attn":
        flags += ["--netG", "unet_128", "--crop_size", "128", "--load_size", "128"]
    elif name != "sagan":
        flags += ["--netG", "resnet_6blocks", "--pool_size", "2"]
    return flags


@pytest.mark.parametrize("case", [*MODELS, *MORE])
def test_a_step_reads_nothing_from_the_device(case, device):
    opt = TrainOptions().parse(flags_of(case))
    model = create_model(opt).to(device)
    optimization = create_optimization(opt, device)
    model.prepare_training(opt, optimization)
    batch = {
        "A": torch.zeros(2, opt.input_nc, opt.crop_size, opt.crop_size),
        "B": torch.zeros(2, opt.output_nc, opt.crop_size, opt.crop_size),
    }
    if opt.model == "sagan":
        del batch["B"]
    if "--class_of" in case:
        batch["class"] = torch.tensor([0, 1])
    for number in range(2):  # in the second one, pools and queues are full
        optimization.begin_step(share=1.0, progress=0.1, images=2, images_before=2 * number)
        with Copies() if number else nullcontext() as copies:
            losses, images = model.step(batch)
    assert copies and copies.count == len(batch), "only images are copied"
    assert {value.device for value in [*losses.values(), *images.values()]} == {device}
    with pytest.raises(RuntimeError, match="meta"):
        next(iter(losses.values())).item()


def test_loss_scaling_reads_nothing_from_the_device(device, monkeypatch):
    opt = TrainOptions().parse(flags_of("cycle_gan"))
    model = create_model(opt).to(device)
    optimization = create_optimization(opt, device)
    optimization.scaler = torch.amp.GradScaler("meta")
    monkeypatch.setattr(torch, "_amp_update_scale_", lambda *args: None)  # a kernel that GPUs have
    monkeypatch.setattr(torch, "_amp_foreach_non_finite_check_and_unscale_", lambda *args: None)
    model.prepare_training(opt, optimization)
    for optimizer in optimization.optimizers.values():
        monkeypatch.setattr(optimizer, "step", lambda: None)
        optimizer._step_supports_amp_scaling = True  # as fused Adam does
    for _ in range(2):
        model.step({side: torch.zeros(1, 3, 32, 32) for side in "AB"})


@pytest.mark.parametrize("model", ["cycle_gan_attn", "sagan"])
def test_the_training_loop_reads_nothing_from_the_device(model, device, tiny_data, tmp_path, monkeypatch):
    steps = []

    def check(guard: LossGuard, losses: dict[str, Tensor], files: list[str]) -> None:
        steps.append(files)  # tests/test_finite.py is about how the guard copies losses

    monkeypatch.setattr(LossGuard, "check", check)
    for module in ("train", "data"):
        monkeypatch.setattr(f"{module}.select_device", lambda *_: device)
    monkeypatch.setattr(train, "save_run", lambda *args, **keywords: None)
    flags = ["--dataroot", str(tiny_data), "--checkpoints_dir", str(tmp_path), "--model", model, "--pool_size=2"]
    flags += [*TINY, "--n_epochs", "1", "--n_epochs_decay", "0", "--max_dataset_size", "2", "--num_threads", "0"]
    flags += ["--display_id", "0", "--no_html", "--batch_size", "1"]
    if model == "sagan":
        flags = [flag for flag in flags if flag not in ("--pool_size=2", "resnet_6blocks", "--netG")]
    frequencies = ["print", "display", "health", "update_html", "save_latest"]
    flags += [word for name in frequencies for word in (f"--{name}_freq", "0")]
    with Copies() as copies:
        assert train.main(flags) == 0
    tensors = 1 if model == "sagan" else 2
    built = 1 if model == "sagan" else 0  # the fixed noise of its samples
    assert len(steps) > 1 and copies.count >= built + tensors * len(steps)
