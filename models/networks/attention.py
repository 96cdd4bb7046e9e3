"""Self-attention over the positions of a feature map (SAGAN), its placement in networks, and its attention maps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from models.networks.layers import no_autocast

LARGEST_MAP = 2**24  # elements of the attention map of one image (4096 x 4096) up to which CPUs keep it for backward
LARGEST_MAPS = 2**26  # the same for the maps of a batch
CHUNK = 2**22  # elements of an attention map that are computed at once beyond that
ALIGNMENT = 8  # fused kernels on GPUs take multiples of so many channels
FLASH_WIDTH = 256  # channels that flash attention takes, at most


class SelfAttention2d(nn.Module):
    """x + gamma * attention(x), where each position of a feature map attends to all positions.

    Queries and keys have C / 8 channels, and their products are not scaled. `gamma` is a learned scalar that starts at
    0, so a new block is the identity.

    Args:
        channels: C, a multiple of 8.
        pooled: use the form of the authors' TensorFlow code. Max pooling reduces keys and values to a quarter of the
            positions, values have C / 2 channels, a convolution restores C channels, and convolutions have no bias.

    Shapes:
        (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: `channels` is not a multiple of 8.

    Reference: Zhang et al. 2019, Self-Attention Generative Adversarial Networks, https://arxiv.org/abs/1805.08318.
    """

    def __init__(self, channels: int, *, pooled: bool = False):
        super().__init__()
        if channels % 8:
            raise ValueError(f"channels={channels} is not a multiple of 8, as attention needs")
        value_channels = channels // 2 if pooled else channels
        self.query_conv = nn.Conv2d(channels, channels // 8, 1, bias=not pooled)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1, bias=not pooled)
        self.value_conv = nn.Conv2d(channels, value_channels, 1, bias=not pooled)
        self.out_conv = nn.Conv2d(value_channels, channels, 1, bias=False) if pooled else nn.Identity()
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W). `attend` decides whether the attention map is materialized."""
        query = tokens(self.query_conv(x))
        key, value = (tokens(self.pool(conv(x))) for conv in (self.key_conv, self.value_conv))
        out = attend(query, key, value)
        out = self.out_conv(out.transpose(1, 2).unflatten(2, x.shape[2:]))
        return x + self.gamma.to(out.dtype) * out  # under autocast, a float32 gamma would make the rest float32

    def weights(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """The attention weights for an input (B, C, H, W), in float32 or wider.

        Args:
            x: the input of the block.
            positions: compute only these rows. Positions are numbered row by row; None means all H * W.

        Returns:
            (B, N, M): row i has the weights of position i for all M positions and sums to 1. N = H * W or
            len(positions); M = H * W, or a quarter of that if pooled.
        """
        query, key = tokens(self.query_conv(x)), tokens(self.pool(self.key_conv(x)))
        return attention_weights(query if positions is None else query[:, positions], key)

    def maps(self, x: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
        """The attention maps of query positions (row, column): (B, len(positions), H, W), each with sum 1."""
        height, width = x.shape[2:]
        weights = self.weights(x, [row * width + column for row, column in positions])
        pooled = (height, width) if isinstance(self.pool, nn.Identity) else (height // 2, width // 2)
        maps = F.interpolate(weights.unflatten(2, pooled), (height, width))  # pooled positions share a weight
        return maps / maps.sum(dim=(2, 3), keepdim=True)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C): one token per position."""
    return x.flatten(2).transpose(1, 2)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(query key^T), in float32 or wider: (B, N, D) and (B, M, D) -> (B, N, M)."""
    precise = torch.promote_types(query.dtype, torch.float32)
    with no_autocast(query):  # products near 100 in bf16 would make weights wrong by 0.05; it is no faster, either
        return torch.softmax(query.to(precise) @ key.to(precise).transpose(1, 2), dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T) value: (B, N, D), (B, M, D) and (B, M, C) -> (B, N, C), in the dtype of `value`.

    GPUs use PyTorch's fused kernels. On CPUs two matrix products are faster; they materialize the attention map
    (B, N, M). A large map is computed in chunks instead, and again in the backward pass, so memory grows with N + M.
    """
    if not query.is_cpu:
        return attend_fused(query, key, value)
    one_map = query.shape[1] * key.shape[1]
    if one_map <= LARGEST_MAP and len(query) * one_map <= LARGEST_MAPS:
        return attend_plain(query, key, value)
    return _AttendInChunks.apply(query, key, value)


def attend_fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute `attend` by F.scaled_dot_product_attention, which uses a fused kernel if there is one."""
    channels = value.shape[-1]
    width, value_width = fused_widths(query.shape[-1], channels, value.dtype)
    # Padding with zeros changes no product. Fused kernels need the channels of a position side by side.
    query, key, value = (
        widened(x, channels).contiguous() for x, channels in ((query, width), (key, width), (value, value_width))
    )
    out = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0).squeeze(1)
    return out[..., :channels]


def fused_widths(width: int, value_width: int, dtype: torch.dtype) -> tuple[int, int]:
    """The channels that queries and keys, and values, need for the fastest kernel on a GPU.

    In bf16 that is flash attention, for which all are equally wide. Other values have the memory-efficient kernel, also
    in fp16, which is for GPUs before Ampere, without flash attention. Its queries and keys may be narrower: as wide as
    the values, which have 8 times as many channels in SAGAN, the first product would take 8 times as long.
    """
    width, value_width = (-(-channels // ALIGNMENT) * ALIGNMENT for channels in (width, value_width))
    flash = dtype == torch.bfloat16 and value_width <= FLASH_WIDTH
    return (value_width if flash else width), value_width


def widened(x: Tensor, channels: int) -> Tensor:
    """(B, N, C) with zeros appended up to `channels`."""
    return x if x.shape[-1] == channels else F.pad(x, (0, channels - x.shape[-1]))


def attend_plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute `attend` by two matrix products."""
    return attention_weights(query, key).to(value.dtype) @ value


class _AttendInChunks(torch.autograd.Function):
    """Compute `attend` with a chunk of rows of the attention map at a time, and again in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        out = value.new_empty(*query.shape[:2], value.shape[2])
        for rows in _chunks(query, key):
            out[rows] = attend_plain(query[rows], key[rows[:1]], value[rows[:1]])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: chunks do not support a second derivative
            out = attend_plain(query, key, value)
            return torch.autograd.grad(out, (query, key, value), gradient, create_graph=True)
        precise = torch.promote_types(value.dtype, torch.float32)
        to_query = torch.empty_like(query)
        to_key, to_value = (torch.zeros_like(x.transpose(1, 2), dtype=precise) for x in (key, value))
        for rows in _chunks(query, key):
            image, from_out = rows[:1], gradient[rows]
            weights = attention_weights(query[rows], key[image])
            # Not weights^T @ gradient: with a transposed left factor in bf16, PyTorch on CPUs is 1000 times slower.
            to_value[image] += from_out.transpose(1, 2) @ weights.to(value.dtype)
            to_weights = (from_out @ value[image].transpose(1, 2)).to(weights.dtype)
            # the derivative of the softmax: w * (dw - sum(w * dw))
            to_scores = (to_weights - (weights * to_weights).sum(-1, keepdim=True)).mul_(weights).to(query.dtype)
            to_query[rows] = to_scores @ key[image]
            to_key[image] += query[rows].transpose(1, 2) @ to_scores
        return to_query, to_key.transpose(1, 2).to(key.dtype), to_value.transpose(1, 2).to(value.dtype)


def _chunks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices (image, rows) that cover the attention maps of a batch, each within one image."""
    rows = max(CHUNK // key.shape[1], 1)
    for image in range(len(query)):
        for first in range(0, query.shape[1], rows):
            yield slice(image, image + 1), slice(first, first + rows)


def place_attention(
    stages: Mapping[str, int],
    attention: Iterable[str],
    *,
    aliases: Mapping[str, Sequence[str]] = MappingProxyType({}),
    pooled: bool = False,
) -> dict[str, SelfAttention2d]:
    """Create the attention blocks of a network.

    Args:
        stages: where attention is possible: name -> channels there.
        attention: names among `stages` and `aliases`.
        aliases: other names, each for one or more stages.
        pooled: see SelfAttention2d.

    Returns:
        Stage -> block, in the order of `attention`, without duplicates.

    Raises:
        ValueError: a name is unknown, or the channels of a stage are not a multiple of 8.
    """
    names: dict[str, None] = {}
    for name in attention:
        chosen = aliases.get(name, (name,))
        if unknown := set(chosen) - stages.keys():
            raise ValueError(f"attention={unknown.pop()!r}: choose from {', '.join([*stages, *aliases])}")
        names |= dict.fromkeys(chosen)
    return {name: SelfAttention2d(stages[name], pooled=pooled) for name in names}


class AttentiveChain(nn.Module):
    """A sequence of layers in `self.model`, with attention blocks in `self.attention`.

    Attention does not change the indices of the layers, so state_dict keys stay the same. A checkpoint without
    attention fits, and with gamma = 0 the output is identical.

    Args:
        layers: the layers.
        stages: where attention is possible: name -> (index of the layer before it, channels there).
        attention: see `place_attention`.
        aliases: see `place_attention`.

    Raises:
        ValueError: see `place_attention`.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        stages: Mapping[str, tuple[int, int]],
        attention: Iterable[str],
        aliases: Mapping[str, Sequence[str]],
    ):
        super().__init__()
        self.model = nn.Sequential(*layers)
        channels = {name: channels for name, (_, channels) in stages.items()}
        self.attention = nn.ModuleDict(place_attention(channels, attention, aliases=aliases))
        self._block_after = {stages[name][0]: name for name in self.attention}

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers on images (B, C, H, W). The result has the dtype of `x`, under autocast too."""
        dtype = x.dtype
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in self._block_after:
                x = self.attention[self._block_after[index]](x)
        return x.to(dtype)

    def outputs(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The outputs of these layers of `model`, by ascending number, before attention; later layers do not run.

        The output of the last layer of `model` has the dtype of `x`.
        """
        dtype, last, outputs = x.dtype, len(self.model) - 1, []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in layers:
                outputs.append(x.to(dtype) if index == last else x)
                if len(outputs) == len(layers):
                    break
            if index in self._block_after:
                x = self.attention[self._block_after[index]](x)
        return outputs


def attention_blocks(net: nn.Module) -> dict[str, SelfAttention2d]:
    """The attention blocks of a network, in order: name, such as block5 or attn1, -> block."""
    return {name.rpartition(".")[2]: block for name, block in net.named_modules() if isinstance(block, SelfAttention2d)}


@contextmanager
def block_inputs(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the input of each attention block in the first forward pass of `net` inside this context: name -> input.

    A compiled network runs eagerly inside the context, since compiled code does not call hooks.
    """
    inputs: dict[str, Tensor] = {}

    def keep(name: str, _block: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.setdefault(name, args[0])

    with ExitStack() as stack:
        if any(module._compiled_call_impl for module in net.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, block in attention_blocks(net).items():
            stack.callback(block.register_forward_pre_hook(partial(keep, name)).remove)
        yield inputs


def attention_maps(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a network on `x` and return its output with the attention maps of all its blocks.

    Args:
        net: any network of this package.
        x: its input: images (B, C, H, W) in [-1, 1], or noise (B, z_dim).

    Returns:
        The output, and a map (B, N, M) for each block, by name, see `SelfAttention2d.weights`. For SAGAN's generator
        and discriminator these are the maps gf1, gf2 and dr1, dr2 of the well-known PyTorch code. A map of 64 x 64
        positions, as in a ResNet generator at 256 pixels, takes 67 MB per image.
    """
    with block_inputs(net) as inputs:
        out = net(x)
    return out, {name: block.weights(inputs[name]) for name, block in attention_blocks(net).items()}
