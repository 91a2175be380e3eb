"""PVTv2: a pyramid of transformer stages whose keys and values come from a reduced map.

"PVT v2: Improved Baselines with Pyramid Vision Transformer" (Wang et al., 2022), Sec. 3 and
Table 1, a baseline of MSCSA (Table 6). Overlapping patch embeddings, spatial-reduction attention,
and an MLP with a depthwise convolution, which also stands for a position encoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from python_ref.layers import (
    Block,
    Mlp,
    PatchEmbed,
    PoolHead,
    drop_path_rates,
)
from python_ref.models.backbone import Settings, check_stages, configure
from python_ref.models.pyramid import Pyramid, Stage
from python_ref.ops import REFERENCE, OpTable

_BLOCK_EPS = 1e-6


@dataclass(frozen=True)
class PVTv2Config:
    """One entry per stage: widths, blocks, heads, MLP ratios, sides of the reduced patches."""

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)


VARIANTS = {
    "pvt_v2_b0": PVTv2Config((32, 64, 160, 256)),
    "pvt_v2_b1": PVTv2Config((64, 128, 320, 512)),
    "pvt_v2_b2": PVTv2Config((64, 128, 320, 512), (3, 4, 6, 3)),
}


class SpatialReductionAttention(nn.Module):
    """Multi-head attention of every pixel over the patches of a strided convolution, Sec. 3.1.

    Args:
        dim: channels C.
        heads: attention heads; C must be a multiple.
        reduction: side of the patches in pixels; 1 attends to the pixels themselves.

    Raises:
        ValueError: heads does not divide dim.
    """

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        self.ops: OpTable = REFERENCE
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.reduce = PatchEmbed(dim, dim, reduction, reduction) if reduction > 1 else None
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        query = self.query(x).flatten(1, 2).unflatten(-1, (self.heads, -1))
        tokens = self.key_value(x if self.reduce is None else self.reduce(x)).flatten(1, 2)
        key, value = tokens.unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        out = self.ops.multiscale_attention(query, [key], [value], self.scale)
        return self.project(out.flatten(-2).unflatten(1, x.shape[1:3]))


class PVTv2(Pyramid):
    """PVTv2 with classifier, see `python_ref.models.create_model`."""

    def __init__(self, config: PVTv2Config, settings: Settings) -> None:
        check_stages(4, **vars(config))
        widths = config.widths
        embeds = [PatchEmbed(settings.in_chans, widths[0], 7, 4, 3)]
        embeds += [PatchEmbed(*pair, 3, 2, 1) for pair in pairwise(widths)]
        rates = drop_path_rates(settings.drop_path, config.depths)
        stages = (
            Stage(embed, _blocks(config, stage, drop_paths), widths[stage], _BLOCK_EPS)
            for stage, (embed, drop_paths) in enumerate(zip(embeds, rates, strict=True))
        )
        super().__init__(None, stages, widths, settings, PoolHead)


def build(name: str, settings: Settings, **options: object) -> PVTv2:
    """Build a variant by name; options replace fields of its `PVTv2Config`."""
    return PVTv2(configure(VARIANTS[name], name, options), settings)


def _blocks(config: PVTv2Config, stage: int, drop_paths: Sequence[float]) -> list[Block]:
    dim, heads = config.widths[stage], config.heads[stage]
    return [
        Block(
            SpatialReductionAttention(dim, heads, config.reductions[stage]),
            Mlp(dim, config.mlp_ratios[stage], depthwise=True, norm_eps=_BLOCK_EPS),
            dim,
            norm_eps=_BLOCK_EPS,
            drop_path=rate,
        )
        for rate in drop_paths
    ]
