"""RetinaNet, "Focal Loss for Dense Object Detection" Sec. 4."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from python_ref.dense.boxes import (
    best,
    decode_boxes,
    flatten_positions,
    grid_anchors,
    suppress,
)
from python_ref.dense.fpn import FeaturePyramid
from python_ref.models.backbone import FeatureInfo

ANCHOR_SIDES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))  # in strides
ANCHORS = 3 * len(ANCHOR_SIDES)  # each with three aspect ratios


class RetinaNetOutput(NamedTuple):
    """One entry per pyramid level."""

    logits: list[Tensor]  # (B, 9 * classes, H_i, W_i)
    deltas: list[Tensor]  # (B, 9 * 4, H_i, W_i)


class RetinaNet(nn.Module):
    """Levels of strides 8 to 128, four shared 3x3 convolutions per task, then the prediction.

    Args:
        features: maps of the backbone; those finer than stride 8 are not used.
        classes: object classes.
        dim: width of the pyramid and of the heads.
        convs: hidden convolutions of each of the two heads.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        *,
        classes: int = 80,
        dim: int = 256,
        convs: int = 4,
    ) -> None:
        super().__init__()
        self.classes = classes
        used = [info for info in features if info.stride >= 8]
        self.skipped = len(features) - len(used)
        self.pyramid = FeaturePyramid(used, dim, "conv", extra_levels=2)
        self.classify = _tower(dim, convs, ANCHORS * classes)
        self.regress = _tower(dim, convs, ANCHORS * 4)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> RetinaNetOutput:
        levels = self.pyramid(maps[self.skipped :])
        return RetinaNetOutput(
            [self.classify(level) for level in levels], [self.regress(level) for level in levels]
        )

    def detect(
        self, output: RetinaNetOutput, size: Sequence[int], count: int = 100, iou: float = 0.5
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best boxes of every image.

        Args:
            output: of `forward`.
            size: height and width of the image.
            count: boxes per image, at most.
            iou: overlap above which the worse of two boxes of a class goes.

        Returns:
            boxes (B, count, 4); scores (B, count), falling, 0 for those that were suppressed; and
            classes (B, count).
        """
        candidates = []
        for info, logits, deltas in zip(
            self.pyramid.feature_info, output.logits, output.deltas, strict=True
        ):
            anchors = grid_anchors(logits, info.stride, [s * info.stride for s in ANCHOR_SIDES])
            boxes = decode_boxes(anchors, flatten_positions(deltas, 4), size)
            scores, labels = flatten_positions(logits, self.classes).sigmoid().max(dim=-1)
            candidates.append(best(scores, 1000, boxes, labels))
        scores, boxes, labels = (torch.cat(part, dim=1) for part in zip(*candidates, strict=True))
        scores, boxes, labels = best(scores, 1000, boxes, labels)
        scores, boxes, labels = best(suppress(boxes, scores, labels, iou), count, boxes, labels)
        return boxes, scores, labels


def _tower(dim: int, convs: int, out_dim: int) -> nn.Sequential:
    tower = nn.Sequential()
    for _ in range(convs):
        tower.append(nn.Conv2d(dim, dim, 3, padding=1)).append(nn.ReLU())
    return tower.append(nn.Conv2d(dim, out_dim, 3, padding=1))
