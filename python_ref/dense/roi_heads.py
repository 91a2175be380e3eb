"""What a region-based detector puts on its maps: region proposals, boxes with classes, masks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.dense.boxes import (
    best,
    decode_boxes,
    flatten_positions,
    grid_anchors,
    suppress,
)
from python_ref.layers import ConvNorm
from python_ref.models.backbone import FeatureInfo


class Proposals(NamedTuple):
    """Raw outputs, one entry per level, and the boxes taken from them."""

    logits: list[Tensor]  # (B, 3, H_i, W_i)
    deltas: list[Tensor]  # (B, 3 * 4, H_i, W_i)
    boxes: Tensor  # (B, N, 4), no gradient


class RegionProposals(nn.Module):
    """A 3x3 convolution and two 1x1, shared by all levels, "Faster R-CNN" Sec. 3.1.

    Args:
        features: channels and strides of the levels.
        count: boxes N to keep, after the best `count` of every level were thinned by IoU 0.7.
    """

    def __init__(self, features: Sequence[FeatureInfo], count: int = 1000) -> None:
        super().__init__()
        dim, anchors = features[0].channels, 3
        self.strides, self.count = [info.stride for info in features], count
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.objectness = nn.Conv2d(dim, anchors, 1)
        self.regress = nn.Conv2d(dim, anchors * 4, 1)

    def forward(self, levels: Sequence[Tensor], size: Sequence[int]) -> Proposals:
        hidden = [F.relu(self.conv(level)) for level in levels]
        logits = [self.objectness(x) for x in hidden]
        deltas = [self.regress(x) for x in hidden]
        return Proposals(logits, deltas, self.select(logits, deltas, size))

    @torch.no_grad()
    def select(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], size: Sequence[int]
    ) -> Tensor:
        """The best boxes of all levels, (B, N, 4)."""
        candidates = []
        for stride, level_logits, level_deltas in zip(self.strides, logits, deltas, strict=True):
            anchors = grid_anchors(level_logits, stride, [8 * stride])
            boxes = decode_boxes(anchors, flatten_positions(level_deltas, 4), size)
            scores = flatten_positions(level_logits, 1).squeeze(-1).sigmoid()
            scores, boxes = best(scores, self.count, boxes)
            candidates.append((suppress(boxes, scores, None, 0.7), boxes))
        scores, boxes = (torch.cat(part, dim=1) for part in zip(*candidates, strict=True))
        return best(scores, self.count, boxes)[1]


class BoxHead(nn.Module):
    """Crops (B, N, C, 7, 7) -> logits (B, N, classes + 1), background last, and box deltas.

    Args:
        dim: channels C.
        classes: object classes.
        convs: 3x3 convolutions with BatchNorm and ReLU on the crop.
        linears: hidden linear layers with ReLU after them.
        width: of the hidden linear layers.
        class_agnostic: deltas (B, N, 1, 4), the same for all classes, instead of
            (B, N, classes, 4).
    """

    bins = 7

    def __init__(
        self,
        dim: int,
        classes: int,
        convs: int = 0,
        linears: int = 2,
        width: int = 1024,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNorm(dim, dim, 3, act=F.relu) for _ in range(convs)))
        in_dim = dim * self.bins**2
        self.linears = nn.ModuleList()
        for _ in range(linears):
            self.linears.append(nn.Linear(in_dim, width))
            in_dim = width
        self.classify = nn.Linear(in_dim, classes + 1)
        self.regress = nn.Linear(in_dim, 4 if class_agnostic else 4 * classes)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(crops.flatten(0, 1)).reshape(*crops.shape[:2], -1)
        for linear in self.linears:
            x = F.relu(linear(x))
        return self.classify(x), self.regress(x).unflatten(-1, (-1, 4))


class MaskHead(nn.Module):
    """Crops (B, N, C, 14, 14) -> logits (B, N, classes, 28, 28), "Mask R-CNN" Fig. 4, right."""

    bins = 14

    def __init__(self, dim: int, classes: int, convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(convs))
        self.upsample = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.classify = nn.Conv2d(dim, classes, 1)

    def forward(self, crops: Tensor) -> Tensor:
        x = crops.flatten(0, 1)
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.classify(F.relu(self.upsample(x))).unflatten(0, crops.shape[:2])
