"""Squeeze-and-excitation: channel factors from the mean of a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """sigmoid(expand(SiLU(squeeze(mean of the map)))), with biases.

    Args:
        dim: channels of the map.
        squeezed: channels in between.
    """

    def __init__(self, dim: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, squeezed)
        self.expand = nn.Linear(squeezed, dim)

    def factors(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> factors (B, C). The mean is taken in float32 (float64)."""
        mean = x.mean(dim=(1, 2), dtype=torch.promote_types(x.dtype, torch.float32))
        hidden = F.silu(self.squeeze(mean.to(x.dtype)))
        return self.expand(hidden).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> x times its channel factors."""
        return x * self.factors(x)[:, None, None, :]
