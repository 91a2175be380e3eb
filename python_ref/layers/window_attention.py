"""Attention in shifted windows, Swin Sec. 3.2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.ops import REFERENCE, OpTable


class WindowAttention(nn.Module):
    """Self-attention inside windows of P x P pixels, with a bias per relative position.

    A map that does not tile is filled up with zeros before the queries, keys and values are
    computed, as in the original; those pixels take part. Shifted windows begin `shift` pixels
    further down and to the right, which leaves cut windows at all four sides. The original rolls
    the map and masks what then shares a window without being near; here the first rows and columns
    are a map of their own, whose windows the operator knows to be incomplete.

    Args:
        dim: channels C.
        heads: attention heads h; C must be a multiple of h.
        window: side P, in pixels.
        shift: of the windows, in pixels, below P; not applied along a side of a single window.
        position_bias: False leaves the bias per relative position out.

    Raises:
        ValueError: heads does not divide dim, or window or shift is out of range.
    """

    used_ops = ("atrous_attention",)

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int = 7,
        shift: int = 0,
        position_bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not 0 <= shift < window:
            raise ValueError(f"shift must be in 0..{window - 1}, got {shift}")
        self.ops: OpTable = REFERENCE
        self.heads, self.window, self.shift = heads, window, shift
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        table = nn.init.trunc_normal_(torch.empty(1, (2 * window - 1) ** 2, heads), std=0.02)
        self.bias = nn.Parameter(table) if position_bias else None
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        below, right = -height % self.window, -width % self.window
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        qkv = self.qkv(x).unflatten(-1, (1, 3, self.heads, -1))
        bands = [
            torch.cat([self._attend(qkv[:, rows, columns]) for columns in self._cut(x.shape[2])], 2)
            for rows in self._cut(x.shape[1])
        ]
        return self.project(torch.cat(bands, dim=1)[:, :height, :width])

    def _cut(self, length: int) -> list[slice]:
        """The parts of one side over which windows run without a shift."""
        if self.shift == 0 or length <= self.window:
            return [slice(0, length)]
        return [slice(0, self.shift), slice(self.shift, length)]

    def _attend(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 1, 3, h, d) -> (B, H, W, C)."""
        out = self.ops.atrous_attention(qkv, self.bias, (1,), self.window, self.scale)
        return out.flatten(-3)
