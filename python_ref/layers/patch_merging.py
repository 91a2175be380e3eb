"""Swin's way to halve a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchMerging(nn.Module):
    """2 x 2 pixels side by side in channels, LayerNorm, Linear: (B, H, W, C) -> (B, H', W', C').

    H' and W' are half of H and W, rounded up; a missing row or column is zero. Swin Sec. 3.1.

    Args:
        dim: channels C.
        out_dim: channels C'.
        norm_eps: of the LayerNorm.
    """

    def __init__(self, dim: int, out_dim: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=norm_eps)
        self.reduce = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, dim=-1)))
