"""Dynamic branch of the EMS block: local and global attention between patches (thesis Sec. 3.3).

"Efficient Vision Transformers with Multi-Scale and Partial Attentions", chapter 3, Eq. 3.6-3.11.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from python_ref.ops import REFERENCE, OpTable

GLOBAL_HEAD_DIM = 8


class ConvAttention(nn.Module):
    """C-MHSA: 3x3 windows of stride 2 whose attention weights are generated from their centres.

    Args:
        dim: channels C.
        heads: h, divides C.
        scale: factor of the logits; Eq. 3.9 has none.

    Raises:
        ValueError: heads does not divide dim.
    """

    used_ops = ("conv_attention_fused",)

    def __init__(self, dim: int, heads: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads of C-MHSA must divide its {dim} channels, got {heads}")
        self.ops: OpTable = REFERENCE
        self.heads, self.scale = heads, scale
        self.depthwise = nn.Parameter(torch.empty(3, 3, dim))
        self.logits = nn.Linear(dim, 81 * heads)
        self.value = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.depthwise, std=math.sqrt(2 / 9))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        weights = (self.depthwise, self.logits.weight, self.logits.bias, self.value.weight)
        return self.ops.conv_attention_fused(x, *weights, self.heads, self.scale)


class GlobalAttention(nn.Module):
    """G-MHSA: plain attention between all patches, heads of width 8, no position anywhere."""

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.heads = dim // GLOBAL_HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.heads, GLOBAL_HEAD_DIM))
        query, key, value = qkv.unbind(dim=2)
        out = self.ops.multiscale_attention(query, [key], [value], GLOBAL_HEAD_DIM**-0.5)
        return self.project(out.flatten(-2).unflatten(1, x.shape[1:3]))


class PooledAttention(nn.Module):
    """Averages of p x p patches, a 1x1, and attention between them: tokens.

    `spread` is the kernel (p, p, C) with which the tokens return to their pixels; it starts as
    nearest upsampling.
    """

    used_ops = ("patch_embed",)

    def __init__(self, mixer: nn.Module, dim: int, patch: int, pool_mode: str) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.patch, self.pool_mode = patch, pool_mode
        self.embed = nn.Parameter(torch.empty(dim, dim))
        self.mixer = mixer
        self.spread = nn.Parameter(torch.ones(patch, patch, dim))
        nn.init.trunc_normal_(self.embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, ceil(H / p), ceil(W / p), C)."""
        return self.mixer(self.ops.patch_embed(x, self.embed, self.patch, "avg", self.pool_mode))


class DynamicBranch(nn.Module):
    """Equal shares of the channels through one `PooledAttention` each, and a 1x1 over all.

    Args:
        dim: channels C.
        mixers: what attends, in the order of the channels, each with its patch size.
        pool_mode: see `patch_embed`.
    """

    used_ops = ("propagate_conv",)

    def __init__(
        self, dim: int, mixers: Sequence[tuple[nn.Module, int]], pool_mode: str = "ceil"
    ) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        share = dim // len(mixers)
        self.scales = nn.ModuleList(
            PooledAttention(mixer, share, patch, pool_mode) for mixer, patch in mixers
        )
        self.mix = nn.Parameter(torch.empty(dim, dim))
        nn.init.trunc_normal_(self.mix, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        parts = x.chunk(len(self.scales), dim=-1)
        maps = [scale(part) for scale, part in zip(self.scales, parts, strict=True)]
        kernels = [scale.spread for scale in self.scales]
        height, width = x.shape[1:3]
        return self.ops.propagate_conv(maps, kernels, self.mix, height, width, None, None)
