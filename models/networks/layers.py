"""Normalisation by name, weight initialisation and spectral normalisation: the parts that every network shares."""

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrizations

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "syncbatch": nn.SyncBatchNorm,
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
