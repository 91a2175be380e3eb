"""Semantic segmentation heads: Semantic FPN, UperNet and TopFormer's sum of maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.dense.fpn import FeaturePyramid
from python_ref.layers import ConvNorm
from python_ref.models.backbone import FeatureInfo


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, H, W) -> (B, C, *size)."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class SemanticFPN(nn.Module):
    """Every pyramid level is brought to the finest size in steps of two, then all are summed.

    A step is a 3x3 convolution with BatchNorm and ReLU, then bilinear up-sampling; the finest level
    has the convolution only. "Panoptic Feature Pyramid Networks", Sec. 3.1.

    Args:
        features: maps of the backbone, strides 4 to 32.
        classes: of the logits, 150 in ADE20K.
        dim: width of the pyramid.
        hidden: width of the summed map.
        dropout: of whole channels before the classifier.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        *,
        classes: int = 150,
        dim: int = 256,
        hidden: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(features, dim)
        self.scales = nn.ModuleList()
        for index in range(len(features)):
            widths = [dim, *[hidden] * max(1, index)]
            self.scales.append(
                nn.ModuleList(
                    ConvNorm(width, hidden, 3, act=F.relu) for width in widths[: max(1, index)]
                )
            )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(hidden, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """-> logits (B, classes, H_1, W_1) of the finest map."""
        levels = self.pyramid(maps)
        total = 0
        for index, (x, convs) in enumerate(zip(levels, self.scales, strict=True)):
            for step, conv in enumerate(convs):
                x = conv(x)
                if index:
                    x = resize(x, levels[index - 1 - step].shape[-2:])
            total = total + x
        return self.classify(self.dropout(total))


class UperNetOutput(NamedTuple):
    """Logits of the decoder and, while training, of the auxiliary head."""

    logits: Tensor  # (B, classes, H_1, W_1)
    auxiliary: Tensor | None  # (B, classes, H_3, W_3)


class UperNet(nn.Module):
    """Pyramid pooling on the last map, a feature pyramid below it, and a fusion of all levels.

    "Unified Perceptual Parsing for Scene Understanding", Sec. 3.1; all convolutions have BatchNorm
    and ReLU, and no bias.

    Args:
        features: maps of the backbone, strides 4 to 32.
        classes: of the logits.
        dim: width of the decoder.
        pools: sides of the pooled maps.
        auxiliary: width of the head on the third map; its output is needed in training only.
        dropout: of whole channels before the classifiers.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        *,
        classes: int = 150,
        dim: int = 512,
        pools: Sequence[int] = (1, 2, 3, 6),
        auxiliary: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, last = (info.channels for info in features)
        self.pools = tuple(pools)
        self.pooled = nn.ModuleList(ConvNorm(last, dim, 1, act=F.relu) for _ in pools)
        self.bottleneck = ConvNorm(last + len(self.pools) * dim, dim, 3, act=F.relu)
        self.laterals = nn.ModuleList(ConvNorm(width, dim, 1, act=F.relu) for width in finer)
        self.outputs = nn.ModuleList(ConvNorm(dim, dim, 3, act=F.relu) for _ in finer)
        self.fuse = ConvNorm(len(features) * dim, dim, 3, act=F.relu)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(dim, classes, 1)
        self.auxiliary = nn.Sequential(
            ConvNorm(features[-2].channels, auxiliary, 3, act=F.relu),
            nn.Dropout2d(dropout),
            nn.Conv2d(auxiliary, classes, 1),
        )

    def pool_pyramid(self, x: Tensor) -> Tensor:
        """The last map beside its poolings, fused: (B, C, H, W) -> (B, dim, H, W)."""
        pooled = [
            resize(conv(F.adaptive_avg_pool2d(x, side)), x.shape[-2:])
            for side, conv in zip(self.pools, self.pooled, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> UperNetOutput:
        levels = [conv(x) for conv, x in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pool_pyramid(maps[-1]))
        for index in range(len(levels) - 1, 0, -1):
            finer = levels[index - 1]
            levels[index - 1] = finer + resize(levels[index], finer.shape[-2:])
        outputs = [conv(x) for conv, x in zip(self.outputs, levels[:-1], strict=True)]
        outputs.append(levels[-1])
        outputs = [resize(x, outputs[0].shape[-2:]) for x in outputs]
        logits = self.classify(self.dropout(self.fuse(torch.cat(outputs, dim=1))))
        return UperNetOutput(logits, self.auxiliary(maps[-2]) if self.training else None)


class SumHead(nn.Module):
    """Maps of equal width, summed at the finest size, then 1x1 convolutions: TopFormer's head.

    "TopFormer: Token Pyramid Transformer for Mobile Semantic Segmentation", Sec. 3.4.

    Args:
        features: maps after their semantics were injected, all of the same width.
        classes: of the logits.
        depthwise: the first 1x1 convolution scales channels only (TopFormer-T).
        dropout: of whole channels before the classifier.

    Raises:
        ValueError: the widths differ.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        *,
        classes: int = 150,
        depthwise: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        widths = [info.channels for info in features]
        if len(set(widths)) != 1:
            raise ValueError(f"the maps must have the same number of channels, got {widths}")
        dim = widths[0]
        self.fuse = ConvNorm(dim, dim, 1, groups=dim if depthwise else 1, act=F.relu)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(dim, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """-> logits (B, classes, H_1, W_1) of the finest map."""
        total = maps[0]
        for x in maps[1:]:
            total = total + resize(x, total.shape[-2:])
        return self.classify(self.dropout(self.fuse(total)))
