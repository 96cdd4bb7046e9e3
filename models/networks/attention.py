"""Self-attention over the positions of a feature map, as SAGAN uses it, and its place beside a chain of layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

LARGEST_MAP = 2**24  # elements of one picture's attention map (4096 x 4096) up to which it is kept for the backward
LARGEST_MAPS = 2**26  # and of those of a batch
PIECE = 2**22  # elements of the part of a map that is worked on at a time


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

        Row i of the map holds the weights, summing to 1, with which position i looks at all others. See `attend` for
        what is built when it is not asked for.
        """
        query = tokens(self.query_conv(x))
        key, value = (tokens(self.pool(conv(x))) for conv in (self.key_conv, self.value_conv))
        if return_attention:
            attention = look(query, key)
            out = attention.to(value.dtype) @ value
        else:
            out = attend(query, key, value)
        out = x + self.gamma * self.out_conv(out.transpose(1, 2).unflatten(2, x.shape[2:]))
        return (out, attention) if return_attention else out

    def look_from(self, points: Sequence[tuple[int, int]], x: Tensor) -> Tensor:
        """Where single positions (row, column) of x, (B, C, H, W), look: (B, len(points), H, W), each summing to 1."""
        rows = [row * x.shape[3] + column for row, column in points]
        query, key = tokens(self.query_conv(x))[:, rows], self.pool(self.key_conv(x))
        weights = look(query, tokens(key)).unflatten(2, key.shape[2:])
        weights = F.interpolate(weights, x.shape[2:])  # what was pooled shares its weight
        return weights / weights.sum(dim=(2, 3), keepdim=True)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C): one token a position."""
    return x.flatten(2).transpose(1, 2)


def look(query: Tensor, key: Tensor) -> Tensor:
    """softmax(query key^T), (B, N, D) and (B, M, D) -> (B, N, M), the softmax in float32 at least."""
    weights = query @ key.transpose(1, 2)
    return torch.softmax(weights, dim=-1, dtype=torch.promote_types(weights.dtype, torch.float32))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T) value: (B, N, D), (B, M, D) and (B, M, C) -> (B, N, C), of the dtype of `value`.

    On GPUs the fused kernels of PyTorch do it. On CPUs they are slower than the plain products, which build the map
    (B, N, M); where that would be large, it is built piece by piece, and again in the backward pass, so that memory
    grows with N + M.
    """
    if not query.is_cpu:
        # the fused kernels want channels last, and queries and keys as wide as values; zeros change no product
        wider = (0, value.shape[-1] - query.shape[-1])
        query, key, value = F.pad(query, wider), F.pad(key, wider), value.contiguous()
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0).squeeze(1)
    one_map = query.shape[1] * key.shape[1]
    if one_map <= LARGEST_MAP and len(query) * one_map <= LARGEST_MAPS:
        return look(query, key).to(value.dtype) @ value
    return _AttendInPieces.apply(query, key, value)


class _AttendInPieces(torch.autograd.Function):
    """`attend` without the map: a few rows of it at a time, made anew in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        out = value.new_empty(*query.shape[:2], value.shape[2])
        for rows in _pieces(query, key):
            out[rows] = look(query[rows], key[rows[:1]]).to(value.dtype) @ value[rows[:1]]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient will be differentiated, which the pieces are not made for
            out = look(query, key).to(value.dtype) @ value
            return torch.autograd.grad(out, (query, key, value), gradient, create_graph=True)
        precise = torch.promote_types(value.dtype, torch.float32)
        to_query = torch.empty_like(query)
        to_key, to_value = (torch.zeros_like(x.transpose(1, 2), dtype=precise) for x in (key, value))
        for rows in _pieces(query, key):
            image, from_out = rows[:1], gradient[rows]
            weights = look(query[rows], key[image])
            # not weights^T times the gradient: in bf16 that product of PyTorch's takes a thousand times longer on CPUs
            to_value[image] += from_out.transpose(1, 2) @ weights.to(value.dtype)
            to_weights = (from_out @ value[image].transpose(1, 2)).to(weights.dtype)
            # of the softmax: w * (dw - sum(w * dw))
            to_scores = (to_weights - (weights * to_weights).sum(-1, keepdim=True)).mul_(weights).to(query.dtype)
            to_query[rows] = to_scores @ key[image]
            to_key[image] += query[rows].transpose(1, 2) @ to_scores
        return to_query, to_key.transpose(1, 2).to(key.dtype), to_value.transpose(1, 2).to(value.dtype)


def _pieces(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of the rows of the maps, of one image each: (image, rows)."""
    rows = max(PIECE // key.shape[1], 1)
    for image in range(len(query)):
        for first in range(0, query.shape[1], rows):
            yield slice(image, image + 1), slice(first, first + rows)


def place_attention(
    stages: Mapping[str, tuple[int, int]], attention: Iterable[str]
) -> tuple[nn.ModuleDict, dict[int, str]]:
    """New blocks at the stages named by `attention`: stage -> SelfAttention2d, and number of the place -> stage.

    Args:
        stages: where blocks may be placed: name -> (number of the place, channels there). Two names for one place are
            one block, known by the first of them.
        attention: names among these.

    Raises:
        ValueError: a name is not among the stages; the message lists those that are.
    """
    first_names = {place: (name, channels) for name, (place, channels) in reversed(list(stages.items()))}
    blocks, names = nn.ModuleDict(), {}
    for wanted in attention:
        if wanted not in stages:
            raise ValueError(
                f"no stage {wanted!r} for attention (--attn_G, --attn_D): choose from {', '.join(stages)}; or none"
            )
        place = stages[wanted][0]
        name, channels = first_names[place]
        blocks[name] = SelfAttention2d(channels)
        names[place] = name
    return blocks, names


class AttentiveChain(nn.Module):
    """A chain of layers, `self.model`, with attention blocks beside it, in `self.attention`.

    The chain keeps its indices, hence its state_dict keys, wherever attention is placed: a checkpoint made without
    attention fits, and with gamma = 0 gives the same output.

    Args:
        layers: the chain.
        stages: where attention may be placed, as in `place_attention`; the number is the index of the last layer.
        attention: names of the stages after which a block acts.
    """

    def __init__(self, layers: Iterable[nn.Module], stages: Mapping[str, tuple[int, int]], attention: Iterable[str]):
        super().__init__()
        self.model = nn.Sequential(*layers)
        self.attention, self._block_after = place_attention(stages, attention)

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
