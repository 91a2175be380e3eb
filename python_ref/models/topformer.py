"""TopFormer: a mobile convolutional pyramid whose pooled levels meet in a small transformer.

"TopFormer: Token Pyramid Transformer for Mobile Semantic Segmentation" (Zhang et al., 2022), a
baseline of MSCSA (Table 6), which keeps the pyramid and replaces the transformer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    ConvNorm,
    DropPath,
    Injection,
    PoolHead,
    drop_path_rates,
    init_transformer,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Backbone, Settings, configure
from python_ref.ops import REFERENCE, OpTable

# Kernel, expansion, channels, stride.
Bottleneck = tuple[int, int, int, int]


@dataclass(frozen=True)
class TopFormerConfig:
    """The pyramid: its bottlenecks and after which of them (from 1) a level is taken; then the
    transformer: heads, blocks, channels of a head's query, ratios of value and MLP. For dense
    prediction, the width of the levels with their semantics injected; None returns plain levels.
    """

    bottlenecks: tuple[Bottleneck, ...]
    taps: tuple[int, ...]
    heads: int
    depth: int = 4
    head_dim: int = 16
    value_ratio: int = 2
    mlp_ratio: int = 2
    stem: int = 16
    inject_width: int | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels."""
        return tuple(self.bottlenecks[tap - 1][2] for tap in self.taps)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per pixel of the levels; the stem has stride 2."""
        return tuple(2 * prod(stride for *_, stride in self.bottlenecks[:tap]) for tap in self.taps)


VARIANTS = {
    "topformer_t": TopFormerConfig(
        (
            (3, 1, 16, 1),
            (3, 4, 16, 2),
            (3, 3, 16, 1),
            (5, 3, 32, 2),
            (5, 3, 32, 1),
            (3, 3, 64, 2),
            (3, 3, 64, 1),
            (5, 6, 96, 2),
            (5, 6, 96, 1),
        ),
        taps=(3, 5, 7, 9),
        heads=4,
    ),
    "topformer_b": TopFormerConfig(
        (
            (3, 1, 16, 1),
            (3, 4, 32, 2),
            (3, 3, 32, 1),
            (5, 3, 64, 2),
            (5, 3, 64, 1),
            (3, 3, 128, 2),
            (3, 3, 128, 1),
            (5, 6, 160, 2),
            (5, 6, 160, 1),
            (3, 6, 160, 1),
        ),
        taps=(3, 5, 7, 10),
        heads=8,
    ),
}


class InvertedResidual(nn.Module):
    """MobileNetV2's bottleneck: [1x1 and ReLU], depthwise and ReLU, 1x1; NCHW.

    The first part is left out without expansion; the input is added where the shapes agree.
    """

    def __init__(self, in_dim: int, dim: int, kernel: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_dim
        self.residual = stride == 1 and in_dim == dim
        self.expand = ConvNorm(in_dim, hidden, 1, act=F.relu) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=F.relu)
        self.project = ConvNorm(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class TokenPyramid(nn.Module):
    """Image -> levels at strides 4, 8, 16 and 32, NCHW; TopFormer Sec. 3.1."""

    def __init__(self, config: TopFormerConfig, in_chans: int) -> None:
        super().__init__()
        self.taps = config.taps
        self.stem = ConvNorm(in_chans, config.stem, 3, 2, act=F.relu)
        self.bottlenecks = nn.ModuleList()
        in_dim = config.stem
        for kernel, expansion, dim, stride in config.bottlenecks:
            self.bottlenecks.append(InvertedResidual(in_dim, dim, kernel, expansion, stride))
            in_dim = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        levels = []
        for index, bottleneck in enumerate(self.bottlenecks, start=1):
            x = bottleneck(x)
            if index in self.taps:
                levels.append(x)
        return levels


class PyramidAttention(nn.Module):
    """Multi-head attention with normalised 1x1 convolutions and scores that are not scaled.

    Values are wider than queries and keys; NCHW, (B, C, H, W) -> (B, C, H, W).
    """

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int, heads: int, head_dim: int, value_ratio: int) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.heads = heads
        inner = heads * head_dim
        self.query = ConvNorm(dim, inner, 1)
        self.key = ConvNorm(dim, inner, 1)
        self.value = ConvNorm(dim, value_ratio * inner, 1)
        self.project = ConvNorm(value_ratio * inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            to_nhwc(convolve(x)).flatten(1, 2).unflatten(-1, (self.heads, -1))
            for convolve in (self.query, self.key, self.value)
        )
        out = self.ops.multiscale_attention(query, [key], [value], 1.0)
        out = out.flatten(-2).unflatten(1, x.shape[-2:])
        return self.project(F.relu6(to_nchw(out)))


class ConvMlp(nn.Module):
    """Normalised 1x1 convolution, depthwise 3x3 with bias, ReLU6, normalised 1x1; NCHW."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        hidden = ratio * dim
        self.expand = ConvNorm(dim, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = ConvNorm(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu6(self.depthwise(self.expand(x))))


class PyramidBlock(nn.Module):
    """Attention and MLP with residuals; their convolutions are normalised, their inputs not."""

    def __init__(self, dim: int, config: TopFormerConfig, drop_path: float) -> None:
        super().__init__()
        self.mixer = PyramidAttention(dim, config.heads, config.head_dim, config.value_ratio)
        self.mlp = ConvMlp(dim, config.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(x))
        return x + self.drop_path(self.mlp(x))


class SemanticsExtractor(nn.Module):
    """Levels pooled to one grid, concatenated, and transformer blocks; TopFormer Sec. 3.2.

    Args:
        config: of the variant.
        grid_stride: pixels of the last level per pixel of the grid: 1 to classify, 2 for dense
            prediction.
        drop_path: rate of the last block.
    """

    used_ops = ("pool_cat",)

    def __init__(self, config: TopFormerConfig, grid_stride: int, drop_path: float) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.grid_stride = grid_stride
        (rates,) = drop_path_rates(drop_path, (config.depth,))
        self.blocks = nn.Sequential(
            *(PyramidBlock(sum(config.widths), config, rate) for rate in rates)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_i, H_i, W_i) -> (B, sum of C_i, H, W)."""
        height, width = ((side - 1) // self.grid_stride + 1 for side in levels[-1].shape[-2:])
        pooled = self.ops.pool_cat([to_nhwc(level) for level in levels], height, width)
        return self.blocks(to_nchw(pooled))


class TopFormer(Backbone):
    """TopFormer with classifier, see `python_ref.models.create_model`.

    The stage maps are the levels of the pyramid, with features_only and `inject_width` fused with
    the semantics of all levels.

    Raises:
        ValueError: taps do not increase, or leave bottlenecks unused.
    """

    def __init__(self, config: TopFormerConfig, settings: Settings) -> None:
        taps, last = config.taps, len(config.bottlenecks)
        if list(taps) != sorted(set(taps)) or not taps or taps[0] < 1 or taps[-1] != last:
            raise ValueError(
                f"taps must increase and end at the last of the {last} bottlenecks, got {taps}"
            )
        self.level_widths = config.widths
        fuses = settings.features_only and config.inject_width is not None
        widths = [config.inject_width] * len(taps) if fuses else config.widths
        super().__init__(widths, config.strides, settings)
        self.pyramid = TokenPyramid(config, settings.in_chans)
        self.extractor = None
        if fuses or not settings.features_only:
            self.extractor = SemanticsExtractor(config, 2 if fuses else 1, settings.drop_path)
        self.injections = nn.ModuleDict()
        if fuses:
            for index in self.out_indices:
                dim = config.widths[index]
                injection = Injection(dim, dim, config.inject_width, convolve=True)
                self.injections[str(index)] = injection
        dim = sum(config.widths)
        self.head = PoolHead(dim, settings.num_classes) if settings.has_head else None
        self.apply(init_transformer)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """x (B, in_chans, H, W) -> the levels, NCHW; those that are returned, with semantics."""
        levels = self.pyramid(x)
        if not self.injections:
            return levels
        semantics = self.extractor(levels).split(self.level_widths, dim=1)
        for index in self.out_indices:
            inject = self.injections[str(index)]
            levels[index] = inject(levels[index], semantics[index])
        return levels

    def forward_head(self, maps: list[Tensor]) -> Tensor:
        return super().forward_head([self.extractor(maps)])


def build(name: str, settings: Settings, **options: object) -> TopFormer:
    """Build a variant by name; options replace fields of its `TopFormerConfig`."""
    return TopFormer(configure(VARIANTS[name], name, options), settings)
