"""EMSNet: convolutions at three scales beside local and global attention between patches.

"Efficient Vision Transformers with Multi-Scale and Partial Attentions", chapter 3. A convolutional
stem and four stages of EMS blocks. A block cuts its channels into a static half, which it whitens,
convolves and gates, and a dynamic half, which attends. The text leaves the order and activation of
the 1x1 convolutions open; what is written here meets the published counts. Recipe: drop_path 0.05.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    ConvNorm,
    DropPath,
    Fold,
    Mlp,
    PoolHead,
    drop_path_rates,
    init_transformer,
    to_nchw,
    to_nhwc,
)
from python_ref.layers.dynamic_branch import (
    GLOBAL_HEAD_DIM,
    ConvAttention,
    DynamicBranch,
    GlobalAttention,
)
from python_ref.layers.static_branch import StaticBranch
from python_ref.models.backbone import Backbone, Settings, check_stages, configure
from python_ref.ops.patch_embed import POOL_MODES
from python_ref.ops.whiten_conv import AXES

_LOCAL_PATCH, _GLOBAL_PATCH = 4, 6
# C / 4 must hold heads of width 8, and the static half must fall into quarters.
_WIDTH_MULTIPLE = 4 * GLOBAL_HEAD_DIM


@dataclass(frozen=True)
class Parts:
    """What a block has, for one line of the ablation (Tables 3.5, 3.7)."""

    patches: tuple[int, ...] | None = None  # of the static branch; () only whitens, None is without
    split: tuple[float, ...] = (1,)
    gate: bool = False
    attention: tuple[str, ...] = ()  # of the dynamic branch


ROWS = {
    "baseline": Parts(),
    "whiten": Parts(()),
    "p2": Parts((2,), (1 / 2, 1 / 2)),
    "p4": Parts((2, 4), (1 / 4, 1 / 2, 1 / 4)),
    "gated": Parts((2, 4), (1 / 4, 1 / 2, 1 / 4), True),
    "+C": Parts((2, 4), (1 / 4, 1 / 2, 1 / 4), True, ("C",)),
    "+G": Parts((2, 4), (1 / 4, 1 / 2, 1 / 4), True, ("C", "G")),  # the full model
}


@dataclass(frozen=True)
class EMSNetConfig:
    """What distinguishes the variants (first three, one entry per stage), and the switches."""

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (3, 3, 10, 2)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    # C-MHSA: of all stages, or of each. The reading without `fuse` has C // 16 (Sec. 3.4).
    cmhsa_heads: int | tuple[int, ...] = 2
    cmhsa_scale: float = 1.0
    row: str = "+G"  # of the ablation, a name in ROWS
    # Shares of the static channels: patches of 2, as they are, patches of 4; None as the row says.
    split: tuple[float, ...] | None = None
    fuse: bool = True  # False: no 1x1 over static and dynamic channels together
    channel_splitting: bool = True  # False: both branches have C channels
    whiten_axis: str = "spatial"  # or "channel", see whiten_conv
    pool_mode: str = "ceil"  # or "floor", see patch_embed


VARIANTS = {
    "emsnet_xxtiny": EMSNetConfig((32, 64, 128, 192), (2, 2, 4, 2)),
    "emsnet_xtiny": EMSNetConfig((32, 64, 96, 128)),
    # The printed parameters of XTiny need a wider last stage than the one that is printed.
    "emsnet_xtiny_c192": EMSNetConfig((32, 64, 96, 192)),
    "emsnet_tiny": EMSNetConfig((64, 96, 128, 256)),
}


class MultiScaleInteraction(nn.Module):
    """P_out act(P_fuse [static(s) | dynamic(d)]) with [s | d] = P_in x, Sec. 3.3.

    Rows without attention have no dynamic half, no fusion and no activation; without a gate the
    static branch's own mixture is P_out.

    Args:
        dim: channels C.
        heads: of C-MHSA.
        config: the switches.
    """

    def __init__(self, dim: int, heads: int, config: EMSNetConfig) -> None:
        super().__init__()
        parts = ROWS[config.row]
        halves = 2 if parts.attention else 1
        branch = dim // halves if config.channel_splitting else dim
        total = halves * branch
        self.project_in = nn.Linear(dim, total, bias=False)
        self.static = self.dynamic = self.fuse = self.project_out = None
        if parts.patches is not None:
            split = config.split or parts.split
            self.static = StaticBranch(
                branch, parts.patches, split, parts.gate, config.whiten_axis, config.pool_mode
            )
        if parts.attention:
            share = branch // len(parts.attention)
            mixers = {
                "C": lambda: (ConvAttention(share, heads, config.cmhsa_scale), _LOCAL_PATCH),
                "G": lambda: (GlobalAttention(share), _GLOBAL_PATCH),
            }
            attend = [mixers[kind]() for kind in parts.attention]
            self.dynamic = DynamicBranch(branch, attend, config.pool_mode)
            self.fuse = nn.Linear(total, total, bias=False) if config.fuse else None
        if parts.gate or self.static is None:
            self.project_out = nn.Linear(total, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        z = self.project_in(x)
        if self.dynamic is not None:
            static, dynamic = z.chunk(2, dim=-1)
            z = torch.cat([self.static(static), self.dynamic(dynamic)], dim=-1)
            z = F.gelu(z if self.fuse is None else self.fuse(z))
        elif self.static is not None:
            z = self.static(z)
        return z if self.project_out is None else self.project_out(z)


class EMSBlock(nn.Module):
    """y = x + MSI(BN(x)), then y + MLP(BN(y)): (B, H, W, C) -> (B, H, W, C)."""

    folds = (Fold("norm1", before="mixer.project_in"), Fold("norm2", before="mlp.expand"))

    def __init__(
        self, dim: int, mlp_ratio: int, heads: int, config: EMSNetConfig, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.mixer = MultiScaleInteraction(dim, heads, config)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, mlp_ratio, norm_eps=None, bias=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(_normalised(self.norm1, x)))
        return x + self.drop_path(self.mlp(_normalised(self.norm2, x)))


class EMSNet(Backbone):
    """EMSNet with classifier, see `python_ref.models.create_model`.

    Any input size: stage i has ceil(H / 4 / 2**i) rows, every stride rounding up; with pool_mode
    "floor" the last stage needs 6 x 6 pixels.

    Raises:
        ValueError: a width is no multiple of 32, or an option has an unknown value.
    """

    def __init__(self, config: EMSNetConfig, settings: Settings) -> None:
        _check(config)
        widths, heads = config.widths, _heads_of_stages(config)
        super().__init__(widths, (4, 8, 16, 32), settings)
        self.stem = nn.Sequential(
            ConvNorm(settings.in_chans, widths[0], 3, 2, act=F.gelu),
            ConvNorm(widths[0], widths[0], 3, 2),
        )
        self.downsamples = nn.ModuleList(ConvNorm(*pair, 3, 2) for pair in pairwise(widths))
        rates = drop_path_rates(settings.drop_path, config.depths)
        self.stages = nn.ModuleList(
            nn.Sequential(*(EMSBlock(dim, ratio, number, config, rate) for rate in stage_rates))
            for dim, ratio, number, stage_rates in zip(
                widths, config.mlp_ratios, heads, rates, strict=True
            )
        )
        if settings.has_head:
            norm = nn.BatchNorm2d(widths[-1])
            self.head = nn.Sequential(norm, PoolHead(widths[-1], settings.num_classes))
        self.apply(init_transformer)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for index, stage in enumerate(self.stages):
            if index:
                x = self.downsamples[index - 1](x)
            x = to_nchw(stage(to_nhwc(x)))
            maps.append(x)
        return maps


def build(name: str, settings: Settings, **options: object) -> EMSNet:
    """Build a variant by name; options replace fields of its `EMSNetConfig`."""
    return EMSNet(configure(VARIANTS[name], name, options), settings)


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return to_nhwc(norm(to_nchw(x)))


def _heads_of_stages(config: EMSNetConfig) -> Sequence[int]:
    heads = config.cmhsa_heads
    return (heads,) * len(config.widths) if isinstance(heads, int) else heads


def _check(config: EMSNetConfig) -> None:
    check_stages(
        len(config.widths),
        depths=config.depths,
        mlp_ratios=config.mlp_ratios,
        cmhsa_heads=_heads_of_stages(config),
    )
    if any(width % _WIDTH_MULTIPLE for width in config.widths):
        raise ValueError(f"widths must be multiples of {_WIDTH_MULTIPLE}, got {config.widths}")
    for name, known in (("row", ROWS), ("whiten_axis", AXES), ("pool_mode", POOL_MODES)):
        value = getattr(config, name)
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
