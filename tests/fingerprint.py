"""Print exact results of training, to compare two versions of the code: python -m tests.fingerprint > before.txt.

It trains tiny networks of each model for four steps, in fp32 and bf16 and with each kind of normalization. A
refactoring prints the same text as the commit before it, on the same machine: git worktree add ../before HEAD^.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models import create_model
from options.train_options import TrainOptions
from training.optimization import create_optimization
from training.resume import training_state
from util.registry import choices

STEPS = 4
TINY = (
    "--ngf=8", "--ndf=8", "--crop_size=32", "--load_size=32", "--batch_size=2", "--pool_size=2", "--ema_decay=0.9",
    "--dataroot=.", "--device=cpu",
)  # fmt: skip
NORMS = {
    "instance": ("--norm=instance",),
    "batch": ("--norm=batch",),
    "spectral": ("--norm=none", "--spectral_norm_G", "--spectral_norm_D"),
}
SAGAN = {  # it does not read --norm
    "spectral": (),
    "plain": ("--no-spectral_norm_G", "--no-spectral_norm_D"),
    "resnet": ("--netG=sagan_resnet", "--netD=sagan_resnet"),
    "biggan": ("--netG=biggan", "--netD=biggan"),
}


def main() -> int:
    """Print a block of lines for each combination of model, normalization and precision. Returns the exit status."""
    torch.set_num_threads(1)
    untrained = {"test"}
    for name in choices("models"):
        if name in untrained:
            continue
        for kind, flags in (SAGAN if name == "sagan" else NORMS).items():
            for precision in ("fp32", "bf16"):
                print(f"{name} {kind} {precision}")
                for line in fingerprint(name, [*flags, f"--precision={precision}"]):
                    print(f"  {line}")
    return 0


def fingerprint(name: str, flags: Sequence[str]) -> Iterator[str]:
    """Yield a line with the losses of each step, then digests of weights, training state and random state."""
    argv = [f"--model={name}", *TINY, *flags]
    side = 32
    if name == "sagan":
        argv.remove("--pool_size=2")
    elif name == "pix2pix_attn":
        side = 128  # the smallest for a U-Net
        argv += ["--netG=unet_128", f"--crop_size={side}", f"--load_size={side}"]
    else:
        argv.append("--netG=resnet_6blocks")
    if name == "template":  # it has no discriminator
        argv = [word for word in argv if word != "--spectral_norm_D"]
    opt = TrainOptions().parse(argv)
    torch.manual_seed(opt.seed)
    model = create_model(opt)
    optimization = create_optimization(opt, model.device)
    model.prepare_training(opt, optimization)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        batch = {
            "A": torch.rand(2, opt.input_nc, side, side, generator=generator) * 2 - 1,
            "B": torch.rand(2, opt.output_nc, side, side, generator=generator) * 2 - 1,
        }
        losses, _ = model.step(batch)
        yield f"{step + 1} " + " ".join(f"{key} {float(value.item()).hex()}" for key, value in losses.items())
    yield f"weights {digest(model.state_dict())}"
    yield f"training state {digest(training_state(model, optimization))}"
    yield f"random state {digest(torch.get_rng_state())}"


def digest(value: Any) -> str:
    """SHA-256 of nested dictionaries and sequences of tensors and plain values."""
    sha = hashlib.sha256()
    for leaf in leaves(value):
        sha.update(leaf)
    return sha.hexdigest()


def leaves(value: Any, key: str = "") -> Iterator[bytes]:
    """The keys and values in `value`, depth first, as bytes."""
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            yield from leaves(value[name], f"{key}/{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{key}/{number}")
    elif isinstance(value, Tensor):
        yield f"{key} {value.dtype} {tuple(value.shape)}".encode()
        yield (
            value.detach().contiguous().view(torch.uint8).numpy().tobytes()
            if value.dim()
            else repr(value.item()).encode()
        )
    else:
        yield f"{key} {value!r}".encode()


if __name__ == "__main__":
    sys.exit(main())
