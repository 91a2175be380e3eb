"""Multi-stage cross-scale attention, MSCSA Sec. 3: what a backbone's four stages tell each other.

The stage maps are pooled to one small grid and concatenated on channels. Blocks of attention over
three scales of that grid and of feed-forward layers mix them. All norms are BatchNorm, all linear
maps 1x1 convolutions; there are no tokens and no position tables.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers.conv_norm import ConvNorm
from python_ref.layers.drop_path import DropPath, drop_path_rates
from python_ref.layers.init import init_conv_fan_out
from python_ref.layers.layout import to_nchw, to_nhwc, to_stencil
from python_ref.layers.norm import Fold
from python_ref.ops import REFERENCE, OpTable

SCALES = ("parallel", "avgpool", "cascade", "single", "none")
ENLARGE = ("pool", "bilinear")


def normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm of a map (B, H, W, C)."""
    return to_nhwc(norm(to_nchw(x)))


class CoarserScales(nn.Module):
    """The coarser versions of a map from which keys and values are taken, Sec. 3.2, Eq. 3.

    (B, H, W, C) -> at most two maps. `msp` chooses how (Tables 4 and 5, Fig. 6): "parallel" takes
    depthwise convolutions 3x3 with stride 2 and 5x5 with stride 3, each with BatchNorm; "avgpool"
    takes means over the same windows; "cascade" takes a 3x3 with stride 2 twice in a row; "single"
    has the first of them only, "none" nothing.

    Raises:
        ValueError: msp is none of these.
    """

    def __init__(self, dim: int, msp: str = "parallel") -> None:
        super().__init__()
        if msp not in SCALES:
            raise ValueError(f"msp must be one of {', '.join(SCALES)}, got {msp!r}")
        self.ops: OpTable = REFERENCE
        self.used_ops = ("downsample_pair",) if msp == "parallel" else ()
        self.msp = msp
        kernels = {
            "parallel": ((3, 2), (5, 3)),
            "cascade": ((3, 2), (3, 2)),
            "single": ((3, 2),),
        }.get(msp, ())
        self.convs = nn.ModuleList(ConvNorm(dim, dim, k, s, groups=dim) for k, s in kernels)
        if msp == "parallel":
            for layer in self.convs:
                layer.folds = ()  # the operator takes its weight, and has no place for a bias

    @property
    def number(self) -> int:
        """How many maps there are beside the input."""
        return 2 if self.msp == "avgpool" else len(self.convs)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.msp == "parallel":
            weights = (to_stencil(layer.conv) for layer in self.convs)
            maps = self.ops.downsample_pair(x, *weights, None, None)
            return [normalised(layer.norm, y) for layer, y in zip(self.convs, maps, strict=True)]
        if self.msp == "avgpool":
            pools = ((3, 2, 1), (5, 3, 2))
            return [
                to_nhwc(F.avg_pool2d(to_nchw(x), *pool, count_include_pad=False)) for pool in pools
            ]
        maps, y = [], to_nchw(x)
        for layer in self.convs:
            y = layer(y)
            maps.append(to_nhwc(y))
        return maps


class CrossScaleAttention(nn.Module):
    """Attention of every pixel over three scales of the map in one softmax, Eqs. 1-9 (CSA).

    Every scale has weights of its own. Values are twice as wide as queries and keys. A stencil
    over the values of the finest scale, the parallel convolution path, adds position.

    Args:
        dim: channels C.
        heads: attention heads h.
        head_dim: width d of a head's queries and keys; scores are scaled by d**-0.5.
        msp: the coarser scales, see `CoarserScales`.
        pcp: False leaves the parallel convolution path out.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, msp: str = "parallel", pcp: bool = True
    ) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.used_ops = ("multiscale_attention", *(("value_conv",) if pcp else ()))
        self.heads, self.scale = heads, head_dim**-0.5
        inner = heads * head_dim
        self.norm = nn.BatchNorm2d(dim)
        self.scales = CoarserScales(dim, msp)
        # Queries, keys and values of the map itself; keys and values of the coarser scales.
        self.widths = [(inner, inner, 2 * inner), *[(inner, 2 * inner)] * self.scales.number]
        self.projections = nn.ModuleList(ConvNorm(dim, sum(ws), 1) for ws in self.widths)
        self.value_conv = (
            nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner) if pcp else None
        )
        self.norm_out = nn.BatchNorm2d(2 * inner)
        self.project = nn.Conv2d(2 * inner, dim, 1)

    def init_projections(self) -> None:
        """Queries, keys and values share a convolution, but each has its own fan-out."""
        for layer, widths in zip(self.projections, self.widths, strict=True):
            for part in layer.conv.weight.split(widths):
                nn.init.normal_(part, std=math.sqrt(2 / len(part)))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        normed = normalised(self.norm, x)
        maps = [normed, *self.scales(normed)]
        projected = [
            to_nhwc(layer(to_nchw(y))).split(widths, dim=-1)
            for layer, y, widths in zip(self.projections, maps, self.widths, strict=True)
        ]
        tokens = [[self._tokens(part) for part in parts] for parts in projected]
        keys, values = zip(*(parts[-2:] for parts in tokens), strict=True)
        out = self.ops.multiscale_attention(tokens[0][0], list(keys), list(values), self.scale)
        out = out.flatten(-2).unflatten(1, x.shape[1:3])
        if self.value_conv is not None:
            value = projected[0][-1]
            weight, bias = to_stencil(self.value_conv), self.value_conv.bias
            out = self.ops.value_conv(out, value, weight, bias, None, None)
        return to_nhwc(self.project(F.hardswish(self.norm_out(to_nchw(out)))))

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, H, W, h * d) -> (B, H * W, h, d)."""
        return x.flatten(1, 2).unflatten(-1, (self.heads, -1))


class GroupedPointwise(nn.Module):
    """A 1x1 convolution with bias for every group of channels, (B, H, W, sum of the widths)."""

    used_ops = ("grouped_pointwise",)

    def __init__(self, in_widths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.convs = nn.ModuleList(
            nn.Conv2d(in_width, width, 1) for in_width, width in zip(in_widths, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = [conv.weight.flatten(1) for conv in self.convs]
        return self.ops.grouped_pointwise(x, weights, [conv.bias for conv in self.convs])


class ConvFeedForward(nn.Module):
    """BN, 1x1, BN, depthwise 3x3, ReLU6, 1x1 with the 1x1 convolutions inside channel groups.

    One group is the feed-forward layer of a block; a group for each stage is Intra-FFN, Sec. 3.3,
    which keeps the stages apart.

    Args:
        widths: channels of the groups.
        ratio: hidden channels as a multiple, rounded down in every group.
    """

    used_ops = ("dwconv_act",)
    folds = (Fold("norm", before="expand"), Fold("norm_hidden", after="expand"))

    def __init__(self, widths: Sequence[int], ratio: float) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        hidden = [int(width * ratio) for width in widths]
        self.norm = nn.BatchNorm2d(sum(widths))
        self.expand = GroupedPointwise(widths, hidden)
        self.norm_hidden = nn.BatchNorm2d(sum(hidden))
        self.depthwise = nn.Conv2d(sum(hidden), sum(hidden), 3, padding=1, groups=sum(hidden))
        self.project = GroupedPointwise(hidden, widths)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        hidden = normalised(self.norm_hidden, self.expand(normalised(self.norm, x)))
        weight, bias = to_stencil(self.depthwise), self.depthwise.bias
        return self.project(self.ops.dwconv_act(hidden, weight, bias, "relu6"))


class CrossScaleBlock(nn.Module):
    """CSA, Intra-FFN, CSA, FFN, each on a residual branch; (B, H, W, C) -> (B, H, W, C).

    Args:
        widths: channels of the stages in C.
        heads, head_dim, msp, pcp: of both attentions.
        ratio: of both feed-forward layers.
        intra: False takes a second FFN over all channels in place of Intra-FFN.
        drop_paths: rate of the first two branches, and of the last two.
    """

    def __init__(
        self,
        widths: Sequence[int],
        heads: int,
        head_dim: int,
        ratio: float,
        msp: str,
        pcp: bool,
        intra: bool,
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        dim = sum(widths)
        self.first_attention = CrossScaleAttention(dim, heads, head_dim, msp, pcp)
        self.intra_ffn = ConvFeedForward(widths if intra else [dim], ratio)
        self.second_attention = CrossScaleAttention(dim, heads, head_dim, msp, pcp)
        self.ffn = ConvFeedForward([dim], ratio)
        self.drop_paths = nn.ModuleList(map(DropPath, drop_paths))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.drop_paths
        x = x + first(self.first_attention(x))
        x = x + first(self.intra_ffn(x))
        x = x + second(self.second_attention(x))
        return x + second(self.ffn(x))


class MSCSA(nn.Module):
    """Stage maps (B, C_i, H_i, W_i) -> one map (B, H, W, C) of a grid, C the sum of `widths`.

    Args:
        in_widths: channels C_i of the stages.
        squeeze: factor of the channels before the concatenation, by a 1x1 convolution of every
            stage; 1 has none.
        depth: number of blocks.
        heads, head_dim, ratio, msp, pcp, intra: see `CrossScaleBlock`.
        enlarge: how a map smaller than the grid gets its size (CoaT's last): "pool", an adaptive
            average pooling that repeats pixels, or "bilinear".
        drop_path: rate of the last branches, rising linearly from 0.

    Raises:
        ValueError: squeeze is not in (0, 1], or enlarge or msp is unknown.
    """

    used_ops = ("pool_cat",)

    def __init__(
        self,
        in_widths: Sequence[int],
        *,
        squeeze: float = 1.0,
        depth: int = 1,
        heads: int = 8,
        head_dim: int = 32,
        ratio: float = 2,
        msp: str = "parallel",
        pcp: bool = True,
        intra: bool = True,
        enlarge: str = "pool",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < squeeze <= 1:
            raise ValueError(f"squeeze must be in (0, 1], got {squeeze}")
        if enlarge not in ENLARGE:
            raise ValueError(f"enlarge must be one of {', '.join(ENLARGE)}, got {enlarge!r}")
        self.ops: OpTable = REFERENCE
        self.enlarge = enlarge
        self.widths = [int(width * squeeze) for width in in_widths]
        self.squeeze = GroupedPointwise(in_widths, self.widths) if squeeze < 1 else nn.Identity()
        rates = drop_path_rates(drop_path, [2] * depth)
        self.blocks = nn.Sequential(
            *(
                CrossScaleBlock(self.widths, heads, head_dim, ratio, msp, pcp, intra, pair)
                for pair in rates
            )
        )
        self.norm = nn.BatchNorm2d(sum(self.widths))
        self.apply(init_conv_fan_out)
        for module in self.modules():
            if isinstance(module, CrossScaleAttention):
                module.init_projections()

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Stage maps, NCHW, and the size (H, W) of the grid -> (B, H, W, C)."""
        if self.enlarge == "bilinear":
            maps = [_enlarged(x, size) for x in maps]
        # Pooling and 1x1 convolutions commute; pooled maps are cheaper to squeeze.
        pooled = self.ops.pool_cat([to_nhwc(x) for x in maps], *size)
        return normalised(self.norm, self.blocks(self.squeeze(pooled)))


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The map (B, C, H, W) bilinearly brought to at least `size` on both axes."""
    target = [max(pair) for pair in zip(x.shape[-2:], size, strict=True)]
    if target == list(x.shape[-2:]):
        return x
    return F.interpolate(x, target, mode="bilinear", align_corners=False)
