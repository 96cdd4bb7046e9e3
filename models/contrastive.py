"""The contrastive loss of patches: a translated patch is closer to its source than to other patches of the image."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.networks.layers import no_autocast


def patch_nce(queries: Sequence[Tensor], keys: Sequence[Tensor], *, temperature: float = 0.07) -> Tensor:
    """The PatchNCE loss (a scalar): cross entropy of finding the source of each patch among all patches of its image.

    Args:
        queries: for each layer, unit vectors (B, P, C) of patches of translations, in float32 or wider.
        keys: the same for the sources, at the same positions. They get no gradient.
        temperature: divides the cosine similarities.

    Returns:
        The mean over patches and layers.

    Reference: Park et al. 2020, Contrastive Learning for Unpaired Image-to-Image Translation, arXiv:2007.15651,
    equation 3; van den Oord et al. 2018, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748.
    """
    losses = []
    for query, key in zip(queries, keys, strict=True):
        with no_autocast(query):  # similarities in bf16, divided by the temperature, would be wrong by 0.05
            logits = query @ key.detach().transpose(1, 2) / temperature
        target = torch.arange(query.shape[1], device=query.device).expand(len(query), -1)
        losses.append(F.cross_entropy(logits.flatten(0, 1), target.flatten()))
    return torch.stack(losses).mean()


def draw_positions(features: Iterable[Tensor], count: int) -> list[Tensor]:
    """Draw up to `count` different positions of each feature map (B, C, H, W), numbered row by row."""
    return [torch.randperm(each.shape[2] * each.shape[3], device=each.device)[:count] for each in features]


def flipped_positions(positions: Iterable[Tensor], features: Iterable[Tensor]) -> list[Tensor]:
    """The positions of the same places in horizontally flipped feature maps (B, C, H, W)."""
    widths = [each.shape[3] for each in features]
    return [at + width - 1 - 2 * (at % width) for at, width in zip(positions, widths, strict=True)]
