"""Normalisation by name, weight initialisation and spectral normalisation: the parts that every network shares."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from util import distributed


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm (Ioffe and Szegedy 2015, arXiv:1502.03167) over the pictures of all processes.

    PyTorch's own, which refuses CPUs, and the same for them.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), of the same dtype."""
        if not input.is_cpu or not self.training or distributed.count() == 1:
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.momentum is not None
        assert self.running_mean is not None and self.running_var is not None
        x, dims = input.to(torch.promote_types(input.dtype, torch.float32)), (0, 2, 3)
        here = x.new_tensor([x.numel() / x.shape[1]])
        sums = distributed.total(torch.cat([x.sum(dims), here]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = x - mean[:, None, None]
        variance = distributed.total(centred.square().sum(dims)) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * number / (number - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "syncbatch": SyncBatchNorm,
    "none": lambda channels: nn.Identity(),
}
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def norm_layer(name: str) -> Callable[[int], nn.Module]:
    """Return the constructor `channels -> layer` of a normalisation.

    instance (no weights), batch (affine), syncbatch (batch norm over the pictures of all processes of a distributed
    run; in a single process the same as batch) or none.
    """
    if name not in NORMS:
        raise ValueError(f"--norm {name}: choose from {', '.join(NORMS)}")
    return NORMS[name]


def needs_bias(norm: str) -> bool:
    """Whether a convolution before this normalisation has a bias, as in upstream, whose checkpoints fix it."""
    return norm == "instance"


def init_weights(net: nn.Module, init_type: str = "normal", init_gain: float = 0.02) -> nn.Module:
    """Fill the convolutions and linear layers of `net` in place and return it.

    `init_type` is normal (standard deviation init_gain), xavier (Glorot and Bengio 2010), kaiming (He et al. 2015,
    arXiv:1502.01852; takes no gain) or orthogonal (Saxe et al. 2013, arXiv:1312.6120). Biases become 0, the weights of
    batch norm N(1, 0.02).
    """
    fills: dict[str, Callable] = {
        "normal": lambda weight: nn.init.normal_(weight, 0.0, init_gain),
        "xavier": lambda weight: nn.init.xavier_normal_(weight, init_gain),
        "kaiming": lambda weight: nn.init.kaiming_normal_(weight),
        "orthogonal": lambda weight: nn.init.orthogonal_(weight, init_gain),
    }
    if init_type not in fills:
        raise ValueError(f"--init_type {init_type}: choose from {', '.join(fills)}")
    for module in net.modules():
        if isinstance(module, WEIGHTED):
            fills[init_type](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, BATCH_NORMS):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
    return net


def spectral_normalise(net: nn.Module, leave_out: tuple[str, ...] = ()) -> nn.Module:
    """Divide every convolution and linear layer of `net` by its largest singular value, in place, and return `net`.

    PyTorch's own parametrization (Miyato et al. 2018, arXiv:1802.05957). Comes after `init_weights`: filling a weight
    that is already parametrized has no effect. Layers whose name begins with one of `leave_out` stay as they are.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, WEIGHTED) and not name.startswith(leave_out):
            parametrizations.spectral_norm(module)
    return net
