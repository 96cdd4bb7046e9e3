"""The heads of contrastive losses: features of patches to unit vectors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import no_autocast


class PatchHeads(nn.Module):
    """An MLP with two layers for each feature map of an encoder, which maps the features at chosen positions.

    State_dict keys are those of CUT's netF: mlp_0.0.weight, mlp_0.2.weight, mlp_1.0.weight, ...

    Args:
        widths: channels of the feature maps.
        nc: channels of the hidden layers and the vectors.

    Reference: Park et al. 2020, Contrastive Learning for Unpaired Image-to-Image Translation, arXiv:2007.15651; Chen et
    al. 2020 (SimCLR), arXiv:2002.05709.
    """

    def __init__(self, widths: Iterable[int], *, nc: int = 256):
        super().__init__()
        for number, width in enumerate(widths):
            self.add_module(f"mlp_{number}", nn.Sequential(nn.Linear(width, nc), nn.ReLU(), nn.Linear(nc, nc)))

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Map the features of patches to vectors of length 1.

        Args:
            features: feature maps (B, C, H, W), one for each head.
            positions: for each map, numbers (P,) of positions, row by row.

        Returns:
            For each map, vectors (B, P, nc), in float32 or wider.
        """
        vectors = []
        for head, feature, chosen in zip(self.children(), features, positions, strict=True):
            made = head(feature.flatten(2).index_select(2, chosen).transpose(1, 2))
            with no_autocast(made):
                vectors.append(F.normalize(made.to(torch.promote_types(made.dtype, torch.float32)), dim=2))
        return vectors
