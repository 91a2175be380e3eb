"""Static branch of the EMS block: convolutions at three scales and a gate (thesis Sec. 3.3).

"Efficient Vision Transformers with Multi-Scale and Partial Attentions", chapter 3, Eq. 3.1-3.5.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from python_ref.ops import REFERENCE, OpTable

STRIP = 3


class PooledConv(nn.Module):
    """Largest pixels of p x p patches, twice as many channels, strip convolutions: tokens.

    `spread` is the kernel (p, p, 2 C) with which the tokens return to their pixels; it starts as
    nearest upsampling.
    """

    used_ops = ("patch_embed", "strip_dwconv")

    def __init__(self, dim: int, patch: int, pool_mode: str) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.patch, self.pool_mode = patch, pool_mode
        self.embed = nn.Parameter(torch.empty(2 * dim, dim))
        self.horizontal = nn.Parameter(torch.empty(STRIP, 2 * dim))
        self.vertical = nn.Parameter(torch.empty(STRIP, 2 * dim))
        self.spread = nn.Parameter(torch.ones(patch, patch, 2 * dim))
        nn.init.trunc_normal_(self.embed, std=0.02)
        for strip in (self.horizontal, self.vertical):
            nn.init.normal_(strip, std=math.sqrt(2 / STRIP))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, ceil(H / p), ceil(W / p), 2 C)."""
        z = self.ops.patch_embed(x, self.embed, self.patch, "max", self.pool_mode)
        return self.ops.strip_dwconv(z, self.horizontal, self.vertical)


class StaticBranch(nn.Module):
    """Whitening, a depthwise 3x3, coarser scales of some channels, a 1x1 over all, and a gate.

    With w = dw(whiten(x)) cut into parts, one for each patch size and one that stays as it is:
    y = (gate x) * sigmoid(mix [Prop(PooledConv(part)) | ... | plain part]).

    Args:
        dim: channels C.
        patches: patch sizes, for example (2, 4); with none, w is whiten(x) alone.
        split: shares of C: of the first patch size, of the plain part, of the further patch sizes.
        gate: False returns the mixture itself.
        whiten_axis: see `whiten_conv`.
        pool_mode: see `patch_embed`.

    Raises:
        ValueError: split does not cut C into whole channels.
    """

    used_ops = ("whiten_conv", "propagate_conv")

    def __init__(
        self,
        dim: int,
        patches: Sequence[int] = (2, 4),
        split: Sequence[float] = (1 / 4, 1 / 2, 1 / 4),
        gate: bool = True,
        whiten_axis: str = "spatial",
        pool_mode: str = "ceil",
    ) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.whiten_axis = whiten_axis
        self.parts = _parts(dim, patches, split)
        self.whiten = nn.Parameter(torch.empty(dim, dim))
        self.depthwise = nn.Parameter(torch.empty(3, 3, dim)) if patches else None
        plain = min(1, len(patches))  # the plain part comes second, after the finest scale
        pooled = self.parts[:plain] + self.parts[plain + 1 :]
        self.scales = nn.ModuleList(
            PooledConv(width, patch, pool_mode)
            for width, patch in zip(pooled, patches, strict=True)
        )
        self.plain = plain
        self.mix = nn.Parameter(torch.empty(dim, sum(pooled) + dim))
        self.gate = nn.Parameter(torch.empty(dim, dim)) if gate else None
        for matrix in (self.whiten, self.mix, self.gate):
            if matrix is not None:
                nn.init.trunc_normal_(matrix, std=0.02)
        if self.depthwise is not None:
            nn.init.normal_(self.depthwise, std=math.sqrt(2 / 9))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        whitened = self.ops.whiten_conv(x, self.whiten, self.depthwise, self.whiten_axis)
        parts = list(whitened.split(self.parts, dim=-1))
        plain = parts.pop(self.plain)
        maps = [scale(part) for scale, part in zip(self.scales, parts, strict=True)]
        kernels = [scale.spread for scale in self.scales]
        maps.insert(self.plain, plain)
        kernels.insert(self.plain, None)
        height, width = x.shape[1:3]
        gate_x = None if self.gate is None else x
        return self.ops.propagate_conv(maps, kernels, self.mix, height, width, gate_x, self.gate)


def _parts(dim: int, patches: Sequence[int], split: Sequence[float]) -> list[int]:
    """Channels of every part."""
    parts = [round(dim * share) for share in split]
    if len(split) != len(patches) + 1 or sum(parts) != dim or min(parts) < 1:
        raise ValueError(
            f"split must cut {dim} channels into {len(patches) + 1} parts, got {tuple(split)}"
        )
    return parts
