"""Self-attention over the positions of a feature map, as SAGAN uses it, and its place beside a chain of layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention2d(nn.Module):
    """x + gamma * attention(x), where every position of a feature map looks at all others.

    Zhang et al. 2019, Self-Attention Generative Adversarial Networks, https://arxiv.org/abs/1805.08318. Queries and
    keys have C / 8 channels and are compared without scaling; `gamma` is learned and starts at 0, so that a new block
    changes nothing.

    Args:
        channels: C, a multiple of 8.
        pooled: the form of the paper's own code, where keys and values are max-pooled to a quarter of the positions,
            values have C / 2 channels, a further convolution leads back to C, and no convolution has a bias.
    """

    def __init__(self, channels: int, *, pooled: bool = False):
        super().__init__()
        if channels % 8:
            raise ValueError(f"attention needs a multiple of 8 channels, got {channels}: change --ngf or --ndf")
        value_channels = channels // 2 if pooled else channels
        self.query_conv = nn.Conv2d(channels, channels // 8, 1, bias=not pooled)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1, bias=not pooled)
        self.value_conv = nn.Conv2d(channels, value_channels, 1, bias=not pooled)
        self.out_conv = nn.Conv2d(value_channels, channels, 1, bias=False) if pooled else nn.Identity()
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, C, H, W), and when asked the attention map (B, N, N), N = H * W; pooled: (B, N, N / 4).

        Row i of the map holds the weights, summing to 1, with which position i looks at all others. It is built only
        when asked for: otherwise the fused kernel does without.
        """
        query = tokens(self.query_conv(x))
        key, value = (tokens(self.pool(conv(x))) for conv in (self.key_conv, self.value_conv))
        if return_attention:
            attention = torch.softmax(query @ key.transpose(1, 2), dim=-1)
            out = attention @ value
        else:
            # the fused kernels want channels last, and queries and keys as wide as values; zeros change no product
            wider = (0, value.shape[-1] - query.shape[-1])
            query, key, value = F.pad(query, wider), F.pad(key, wider), value.contiguous()
            out = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0).squeeze(1)
        out = x + self.gamma * self.out_conv(out.transpose(1, 2).unflatten(2, x.shape[2:]))
        return (out, attention) if return_attention else out

    def look_from(self, points: Sequence[tuple[int, int]], x: Tensor) -> Tensor:
        """Where single positions (row, column) of x, (B, C, H, W), look: (B, len(points), H, W), each summing to 1."""
        rows = [row * x.shape[3] + column for row, column in points]
        query, key = tokens(self.query_conv(x))[:, rows], self.pool(self.key_conv(x))
        weights = torch.softmax(query @ tokens(key).transpose(1, 2), dim=-1).unflatten(2, key.shape[2:])
        weights = F.interpolate(weights, x.shape[2:])  # what was pooled shares its weight
        return weights / weights.sum(dim=(2, 3), keepdim=True)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C): one token a position."""
    return x.flatten(2).transpose(1, 2)


class AttentiveChain(nn.Module):
    """A chain of layers, `self.model`, with attention blocks beside it, in `self.attention`.

    The chain keeps its indices, hence its state_dict keys, wherever attention is placed: a checkpoint made without
    attention fits, and with gamma = 0 gives the same output.

    Args:
        layers: the chain.
        stages: where attention may be placed: name -> (index of the stage's last layer, channels there). Two names for
            one place are one block, known by the first of them.
        attention: names of the stages after which a block acts.

    Raises:
        ValueError: a name is not among the stages; the message lists those that are.
    """

    def __init__(self, layers: Iterable[nn.Module], stages: Mapping[str, tuple[int, int]], attention: Iterable[str]):
        super().__init__()
        self.model = nn.Sequential(*layers)
        first_names = {index: (name, channels) for name, (index, channels) in reversed(list(stages.items()))}
        self.attention = nn.ModuleDict()
        self._block_after: dict[int, str] = {}
        for wanted in attention:
            if wanted not in stages:
                raise ValueError(
                    f"no stage {wanted!r} for attention (--attn_G, --attn_D): choose from {', '.join(stages)}; or none"
                )
            index = stages[wanted][0]
            name, channels = first_names[index]
            self.attention[name] = SelfAttention2d(channels)
            self._block_after[index] = name

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Run the chain on (B, C, H, W); the result has the dtype of `x` under autocast too.

        When asked, the attention maps come with it: stage -> (B, h, w, h, w), where [b, i, j] is the picture, summing
        to 1, of where position (i, j) looks.
        """
        dtype, maps = x.dtype, {}
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in self._block_after:
                name = self._block_after[index]
                if return_attention:
                    size = x.shape[2:]
                    x, attention = self.attention[name](x, return_attention=True)
                    maps[name] = attention.unflatten(2, size).unflatten(1, size)
                else:
                    x = self.attention[name](x)
        x = x.to(dtype)
        return (x, maps) if return_attention else x


def attention_blocks(net: nn.Module) -> dict[str, SelfAttention2d]:
    """The attention blocks of any network, in their order: name, such as block5 or attn1 -> block."""
    return {
        name.removeprefix("attention."): block
        for name, block in net.named_modules()
        if isinstance(block, SelfAttention2d)
    }


@contextmanager
def block_inputs(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, the dict receives what goes into each attention block in the first run of `net`: by name of the block."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str, _block: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.setdefault(name, args[0])

    hooks = [block.register_forward_pre_hook(partial(keep, name)) for name, block in attention_blocks(net).items()]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
