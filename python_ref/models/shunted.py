"""Shunted Transformer: half of the heads see coarse tokens, the other half fine ones.

"Shunted Self-Attention via Multi-Scale Token Aggregation" (Ren et al., 2022), a baseline of MSCSA
(Table 6). A convolutional stem, then four stages of transformer blocks; the keys and values of
the first three stages are strided convolutions of the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    ConvNorm,
    Mlp,
    PatchEmbed,
    PoolHead,
    PositionConv,
    drop_path_rates,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Settings, check_stages, configure
from python_ref.models.pyramid import Pyramid, Stage
from python_ref.ops import REFERENCE, OpTable

_BLOCK_EPS = 1e-6


@dataclass(frozen=True)
class ShuntedConfig:
    """One entry per stage: widths, blocks, heads, MLP ratios, sides of the coarse patches."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)


VARIANTS = {"shunted_t": ShuntedConfig((64, 128, 256, 512), (1, 2, 4, 1))}


class TokenGroup(nn.Module):
    """Keys and values of half of the heads: (B, H, W, C) -> two tensors (B, M, h / 2, d).

    A token is the GELU of a normalised patch; values are enhanced by a depthwise convolution of
    the map of tokens, Sec. 3.1.
    """

    def __init__(self, dim: int, heads: int, patch: int) -> None:
        super().__init__()
        self.heads = heads // 2
        self.reduce = PatchEmbed(dim, dim, patch, patch)
        self.key_value = nn.Linear(dim, dim)
        self.enhance = PositionConv(dim // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(F.gelu(self.reduce(x))).chunk(2, dim=-1)
        tokens = (
            t.flatten(1, 2).unflatten(-1, (self.heads, -1)) for t in (key, self.enhance(value))
        )
        return tuple(tokens)


class ShuntedAttention(nn.Module):
    """Attention whose first half of heads sees patches of one side, the second of half that side.

    Args:
        dim: channels C.
        heads: attention heads h, an even number that divides C.
        reduction: side of the coarse patches in pixels, an even number.
    """

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.groups = nn.ModuleList(
            TokenGroup(dim, heads, patch) for patch in (reduction, reduction // 2)
        )
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        query = self.query(x).flatten(1, 2).unflatten(-1, (self.heads, -1))
        outs = []
        for q, group in zip(query.chunk(2, dim=2), self.groups, strict=True):
            key, value = group(x)
            outs.append(self.ops.multiscale_attention(q, [key], [value], self.scale))
        return self.project(torch.cat(outs, dim=2).flatten(-2).unflatten(1, x.shape[1:3]))


class EnhancedAttention(nn.Module):
    """Attention between all pixels, plus a depthwise convolution of the values: the last stage."""

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.enhance = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        q, k, v = (
            t.flatten(1, 2).unflatten(-1, (self.heads, -1)) for t in (self.query(x), key, value)
        )
        out = self.ops.multiscale_attention(q, [k], [v], self.scale)
        enhanced = to_nhwc(self.enhance(to_nchw(value)))
        return self.project(out.flatten(-2).unflatten(1, x.shape[1:3]) + enhanced)


class Stem(nn.Module):
    """7x7 convolution with stride 2, BatchNorm, ReLU, then patches of 2 x 2: NHWC at stride 4."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_chans, dim, 7, 2, act=F.relu)
        self.embed = PatchEmbed(dim, dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(to_nhwc(self.conv(to_nchw(x))))


class Shunted(Pyramid):
    """Shunted Transformer with classifier, see `python_ref.models.create_model`.

    Raises:
        ValueError: heads of a stage do not divide its width, or are odd where they are split.
    """

    def __init__(self, config: ShuntedConfig, settings: Settings) -> None:
        _check(config)
        widths = config.widths
        embeds = [Stem(settings.in_chans, widths[0])]
        embeds += [PatchEmbed(*pair, 3, 2, 1) for pair in pairwise(widths)]
        rates = drop_path_rates(settings.drop_path, config.depths)
        stages = (
            Stage(embed, _blocks(config, stage, drop_paths), widths[stage], _BLOCK_EPS)
            for stage, (embed, drop_paths) in enumerate(zip(embeds, rates, strict=True))
        )
        super().__init__(None, stages, widths, settings, PoolHead)


def build(name: str, settings: Settings, **options: object) -> Shunted:
    """Build a variant by name; options replace fields of its `ShuntedConfig`."""
    return Shunted(configure(VARIANTS[name], name, options), settings)


def _blocks(config: ShuntedConfig, stage: int, drop_paths: Sequence[float]) -> list[Block]:
    dim, heads, reduction = config.widths[stage], config.heads[stage], config.reductions[stage]
    return [
        Block(
            ShuntedAttention(dim, heads, reduction)
            if reduction > 1
            else EnhancedAttention(dim, heads),
            Mlp(dim, config.mlp_ratios[stage], depthwise="residual", norm_eps=_BLOCK_EPS),
            dim,
            norm_eps=_BLOCK_EPS,
            drop_path=rate,
        )
        for rate in drop_paths
    ]


def _check(config: ShuntedConfig) -> None:
    check_stages(4, **vars(config))
    for dim, heads, reduction in zip(config.widths, config.heads, config.reductions, strict=True):
        if dim % heads or (reduction > 1 and (heads % 2 or reduction % 2)):
            raise ValueError(
                "heads must divide widths, and be even, as reductions, where a stage is reduced; "
                f"got heads {config.heads}, widths {config.widths}, reductions {config.reductions}"
            )
