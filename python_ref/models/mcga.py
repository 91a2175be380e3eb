"""MCGA: a few learned queries pool the map, and multi-scale convolutions read the pooled tokens.

Vo et al., "Multi-scale Convolutions Meet Group Attention for Dense Prediction Tasks" (Sec. 3.1
block, 3.2 attention and configuration, Eq. 1 to 3, Tables 1 to 4). Eight queries attend to all
pixels, the eight outputs are mixed by a small MLP across tokens, and every pixel reads them twice,
with a 3x3 and a 5x5 depthwise convolution of the map as queries: linear cost in all stages.
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
    ConvStem,
    Mlp,
    drop_path_rates,
    to_nchw,
    to_nhwc,
    to_stencil,
)
from python_ref.models.backbone import Settings, check_stages, configure
from python_ref.models.pyramid import Pyramid, Stage
from python_ref.ops import REFERENCE, OpTable

_EPS = 1e-6


@dataclass(frozen=True)
class MCGAConfig:
    """The one published size, and what the paper leaves open."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (2, 2, 6, 6)
    heads: tuple[int, ...] = (2, 2, 4, 8)
    groups: int = 8
    scale: str = "head"  # or "width", see MCGAttention
    fuse: str = "sum_proj"  # or "proj_sum", see MCGAttention
    stem: str = "patch"  # or "conv"
    mixer_ratio: int = 4
    mixer_norm: bool = True
    query_bias: bool = True
    absorbed: bool = False


VARIANTS = {"mcga": MCGAConfig()}


class TokenMixer(nn.Module):
    """g + MLP(LayerNorm(g)^T)^T: mixes the groups, the same for every channel (B, G, C)."""

    def __init__(self, dim: int, groups: int, ratio: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS) if norm else nn.Identity()
        self.expand = nn.Linear(groups, ratio * groups)
        self.project = nn.Linear(ratio * groups, groups)

    def forward(self, groups: Tensor) -> Tensor:
        across = self.norm(groups).transpose(1, 2)
        return groups + self.project(F.gelu(self.expand(across))).transpose(1, 2)


class MCGAttention(nn.Module):
    """Group attention over the map, a token mixer, and propagation back to every pixel.

    Args:
        dim: channels C.
        heads: attention heads; C must be a multiple.
        groups: learned queries G.
        scale: "head" scales scores by (C / h)**-0.5; "width" by C**-0.5, as Eq. 3 is written.
        fuse: "sum_proj" sums the two branches and projects once, after a projection of the pooled
            tokens; "proj_sum" projects every branch and the tokens not at all.
        mixer_ratio, mixer_norm: of the token mixer.
        query_bias: biases of the two depthwise convolutions.
        absorbed: pool the map itself, not keys and values: exact in real arithmetic and cheaper,
            where published counts have the projections.

    Raises:
        ValueError: heads does not divide dim, or scale or fuse is unknown.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        groups: int = 8,
        scale: str = "head",
        fuse: str = "sum_proj",
        mixer_ratio: int = 4,
        mixer_norm: bool = True,
        query_bias: bool = True,
        absorbed: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        if scale not in ("head", "width"):
            raise ValueError(f"scale must be 'head' or 'width', got {scale!r}")
        if fuse not in ("sum_proj", "proj_sum"):
            raise ValueError(f"fuse must be 'sum_proj' or 'proj_sum', got {fuse!r}")
        self.ops: OpTable = REFERENCE
        self.used_ops = (
            "single_query_attention_absorbed" if absorbed else "single_query_attention",
            "group_propagate" if fuse == "sum_proj" else "token_fusion",
        )
        self.heads, self.fuse, self.absorbed = heads, fuse, absorbed
        self.scale = (dim // heads if scale == "head" else dim) ** -0.5
        self.tokens = nn.Parameter(torch.empty(groups, dim))
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.mixer = TokenMixer(dim, groups, mixer_ratio, mixer_norm)
        self.conv3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=query_bias)
        self.conv5 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, bias=query_bias)
        self.key_value3 = nn.Linear(dim, 2 * dim)
        self.key_value5 = nn.Linear(dim, 2 * dim)
        branches = 1 if fuse == "sum_proj" else 2
        self.project_groups = nn.Linear(dim, dim) if fuse == "sum_proj" else nn.Identity()
        self.projections = nn.ModuleList(nn.Linear(dim, dim) for _ in range(branches))
        nn.init.trunc_normal_(self.tokens, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        groups = self.mixer(self.project_groups(self.pool(x.flatten(1, 2)).flatten(-2)))
        kv3, kv5 = (
            layer(groups).unflatten(-1, (2, self.heads, -1))
            for layer in (self.key_value3, self.key_value5)
        )
        return self.propagate(x, kv3, kv5)

    def pool(self, x: Tensor) -> Tensor:
        """Group attention (Eq. 3): tokens (B, N, C) -> (B, G, h, d)."""
        query = self.query(self.tokens).unflatten(-1, (self.heads, -1))
        if self.absorbed:
            key_weight, value_weight = self.key_value.weight.chunk(2)
            value_bias = self.key_value.bias.chunk(2)[1]
            return self.ops.single_query_attention_absorbed(
                query, x, key_weight, value_weight, value_bias, self.scale, None
            )
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        return self.ops.single_query_attention(query, key, value, self.scale, None)

    def propagate(self, x: Tensor, kv3: Tensor, kv5: Tensor) -> Tensor:
        """Every pixel of x reads the groups kv3 and kv5, both (B, G, 2, h, d)."""
        if self.fuse == "sum_proj":
            convs = [p for c in (self.conv3, self.conv5) for p in (to_stencil(c), self._bias(c))]
            return self.projections[0](self.ops.group_propagate(x, *convs, kv3, kv5, self.scale))
        out = torch.zeros_like(x)
        for conv, kv, project in zip(
            (self.conv3, self.conv5), (kv3, kv5), self.projections, strict=True
        ):
            query = to_nhwc(conv(to_nchw(x))).flatten(1, 2).unflatten(-1, (self.heads, -1))
            branch = self.ops.token_fusion(query, kv, torch.zeros_like(query), self.scale)
            out = out + project(branch.reshape(x.shape))
        return out

    def _bias(self, conv: nn.Conv2d) -> Tensor:
        return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


class SeparableEmbed(nn.Module):
    """Depthwise convolution with the stride of the patches, 1x1 convolution, BatchNorm, NCHW.

    The paper states the depthwise convolution; the 1x1 after it changes the width.
    """

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_dim, in_dim, kernel, stride, padding=kernel // 2, groups=in_dim
        )
        self.expand = ConvNorm(in_dim, dim, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.depthwise(x))


class StageEmbed(SeparableEmbed):
    """The same with a 3x3 kernel and stride 2, (B, H, W, C) -> (B, H', W', C')."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return to_nhwc(super().forward(to_nchw(x)))


class MCGA(Pyramid):
    """MCGA backbone with classifier, see `python_ref.models.create_model`."""

    def __init__(self, config: MCGAConfig, settings: Settings) -> None:
        _check(config)
        embeds = [nn.Identity(), *(StageEmbed(*pair) for pair in pairwise(config.widths))]
        rates = drop_path_rates(settings.drop_path, config.depths)
        stages = [
            Stage(embed, _blocks(config, dim, heads, drop_paths), dim)
            for embed, dim, heads, drop_paths in zip(
                embeds, config.widths, config.heads, rates, strict=True
            )
        ]
        stem = (
            ConvStem(settings.in_chans, config.widths[0])
            if config.stem == "conv"
            else SeparableEmbed(settings.in_chans, config.widths[0], 7, 4)
        )
        super().__init__(stem, stages, config.widths, settings)


def _blocks(config: MCGAConfig, dim: int, heads: int, drop_paths: Sequence[float]) -> list[Block]:
    return [
        Block(
            MCGAttention(
                dim,
                heads,
                config.groups,
                config.scale,
                config.fuse,
                config.mixer_ratio,
                config.mixer_norm,
                config.query_bias,
                config.absorbed,
            ),
            Mlp(dim, norm_eps=_EPS),
            dim,
            norm_eps=_EPS,
            drop_path=rate,
        )
        for rate in drop_paths
    ]


def build(name: str, settings: Settings, **options: object) -> MCGA:
    """Build a variant by name; options replace fields of its `MCGAConfig`."""
    return MCGA(configure(VARIANTS[name], name, options), settings)


def _check(config: MCGAConfig) -> None:
    check_stages(4, widths=config.widths, depths=config.depths, heads=config.heads)
    if config.stem not in ("patch", "conv"):
        raise ValueError(f"stem must be 'patch' or 'conv', got {config.stem!r}")
