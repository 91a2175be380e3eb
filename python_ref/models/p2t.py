"""P2T: keys and values from a pyramid of pooled maps.

"P2T: Pyramid Pooling Transformer for Scene Understanding" (Wu et al., 2021), a baseline of MSCSA
(Table 6). Four stages of an overlapping patch embedding and transformer blocks; every pixel
attends to some hundred tokens, which are averages of the map over four sizes of window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    Mlp,
    PatchEmbed,
    PoolHead,
    PositionConv,
    drop_path_rates,
    init_linear,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Settings, check_stages, configure
from python_ref.models.pyramid import Pyramid
from python_ref.ops import REFERENCE, OpTable

_BLOCK_EPS = 1e-6


@dataclass(frozen=True)
class P2TConfig:
    """One entry per stage: widths, blocks, heads, MLP ratios, and the windows of the pyramid."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    pool_ratios: tuple[tuple[int, ...], ...] = (
        (12, 16, 20, 24),
        (6, 8, 10, 12),
        (3, 4, 5, 6),
        (1, 2, 3, 4),
    )


VARIANTS = {"p2t_tiny": P2TConfig((48, 96, 240, 384), (2, 2, 6, 3))}


class PyramidPoolingAttention(nn.Module):
    """Multi-head attention of every pixel over a pyramid of pooled maps, P2T Sec. 3.2.

    Args:
        dim: channels C.
        heads: attention heads; C must be a multiple.
        pool_ratios: sides of the pooling windows, in pixels.

    Raises:
        ValueError: heads does not divide dim.
    """

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int, heads: int, pool_ratios: Sequence[int]) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        self.ops: OpTable = REFERENCE
        self.heads, self.pool_ratios = heads, tuple(pool_ratios)
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)

    def pyramid(self, x: Tensor, positions: Sequence[nn.Module]) -> Tensor:
        """x (B, H, W, C) -> the pixels (B, M, C) of all pooled maps."""
        levels = []
        for ratio, position in zip(self.pool_ratios, positions, strict=True):
            # round() takes a half to the even number, hence a small map to no pixel at all.
            size = [max(1, round(side / ratio)) for side in x.shape[1:3]]
            pooled = to_nhwc(F.adaptive_avg_pool2d(to_nchw(x), size))
            levels.append(position(pooled).flatten(1, 2))
        return torch.cat(levels, dim=1)

    def forward(self, x: Tensor, positions: Sequence[nn.Module]) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C); positions: one for every pooled map, from the stage."""
        query = self.query(x).flatten(1, 2).unflatten(-1, (self.heads, -1))
        tokens = self.key_value(self.norm(self.pyramid(x, positions)))
        key, value = tokens.unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        out = self.ops.multiscale_attention(query, [key], [value], self.scale)
        return self.project(out.flatten(-2).unflatten(1, x.shape[1:3]))


class Stage(nn.Module):
    """Patch embedding and blocks, which share the position convolutions of their pyramids."""

    def __init__(
        self,
        embed: PatchEmbed,
        dim: int,
        heads: int,
        mlp_ratio: int,
        pool_ratios: Sequence[int],
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        self.embed = embed
        self.positions = nn.ModuleList(PositionConv(dim) for _ in pool_ratios)
        self.blocks = nn.ModuleList(
            Block(
                PyramidPoolingAttention(dim, heads, pool_ratios),
                Mlp(dim, mlp_ratio, act=F.hardswish, depthwise="between", norm_eps=_BLOCK_EPS),
                dim,
                norm_eps=_BLOCK_EPS,
                drop_path=rate,
            )
            for rate in drop_paths
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, self.positions)
        return x


class P2T(Pyramid):
    """P2T backbone with classifier, see `python_ref.models.create_model`."""

    def __init__(self, config: P2TConfig, settings: Settings) -> None:
        check_stages(4, **vars(config))
        widths = config.widths
        embeds = [PatchEmbed(settings.in_chans, widths[0], 7, 4, 3)]
        embeds += [PatchEmbed(*pair, 3, 2, 1) for pair in pairwise(widths)]
        stages = map(
            Stage,
            embeds,
            widths,
            config.heads,
            config.mlp_ratios,
            config.pool_ratios,
            drop_path_rates(settings.drop_path, config.depths),
        )
        super().__init__(None, stages, widths, settings, PoolHead, init_linear)


def build(name: str, settings: Settings, **options: object) -> P2T:
    """Build a variant by name; options replace fields of its `P2TConfig`."""
    return P2T(configure(VARIANTS[name], name, options), settings)
