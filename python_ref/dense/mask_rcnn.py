"""Mask R-CNN, and Cascade Mask R-CNN as the same detector with three stages."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from python_ref.dense.boxes import best, decode_boxes, suppress
from python_ref.dense.fpn import FeaturePyramid
from python_ref.dense.roi_align import roi_align
from python_ref.dense.roi_heads import BoxHead, MaskHead, Proposals, RegionProposals
from python_ref.models.backbone import FeatureInfo

# What a unit of a predicted delta stands for: later stages correct less ("Cascade R-CNN" Sec. 4).
DELTA_SCALES = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class Detections(NamedTuple):
    """The best boxes of every image; one that a better box suppressed has score 0."""

    boxes: Tensor  # (B, D, 4)
    scores: Tensor  # (B, D), falling
    labels: Tensor  # (B, D)


class MaskRCNNOutput(NamedTuple):
    """What losses are made of, and what a user wants."""

    proposals: Proposals
    logits: list[Tensor]  # of every stage: (B, N, classes + 1)
    deltas: list[Tensor]  # of every stage: (B, N, classes or 1, 4)
    detections: Detections
    masks: list[Tensor]  # of every stage: (B, D, classes, 28, 28), logits of the detections


class MaskRCNN(nn.Module):
    """Feature pyramid, region proposals, box heads in sequence, mask heads.

    Args:
        features: maps of the backbone, strides 4 to 32.
        classes: object classes.
        dim: width of the pyramid.
        stages: box heads, each refining the boxes of the one before, and as many mask heads.
        box_convs: 3x3 convolutions of a box head.
        box_linears: hidden linear layers of a box head.
        class_agnostic: one refinement of a box for all classes.
        proposals: boxes N per image for the box heads.
        detections: boxes D per image for the mask heads.

    Raises:
        ValueError: stages is not 1, 2 or 3.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        *,
        classes: int = 80,
        dim: int = 256,
        stages: int = 1,
        box_convs: int = 0,
        box_linears: int = 2,
        class_agnostic: bool = False,
        proposals: int = 1000,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if not 1 <= stages <= len(DELTA_SCALES):
            raise ValueError(f"stages must be in 1..{len(DELTA_SCALES)}, got {stages}")
        self.classes, self.detections = classes, detections
        self.strides = [info.stride for info in features]
        self.pyramid = FeaturePyramid(features, dim, "pool", extra_levels=1)
        self.propose = RegionProposals(self.pyramid.feature_info, proposals)
        self.box_heads = nn.ModuleList(
            BoxHead(dim, classes, box_convs, box_linears, class_agnostic=class_agnostic)
            for _ in range(stages)
        )
        self.mask_heads = nn.ModuleList(MaskHead(dim, classes) for _ in range(stages))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> MaskRCNNOutput:
        levels = self.pyramid(maps)
        proposals = self.propose(levels, size)
        levels = levels[: len(self.strides)]  # the coarsest serves proposals only
        boxes, all_logits, all_deltas = proposals.boxes, [], []
        for head, scales in zip(self.box_heads, DELTA_SCALES, strict=False):
            if all_logits:  # refine the boxes of the best class
                boxes = _of_label(boxes, all_logits[-1][..., :-1].argmax(-1)).detach()
            logits, deltas = head(roi_align(levels, self.strides, boxes, head.bins))
            all_logits.append(logits)
            all_deltas.append(deltas)
            boxes = decode_boxes(boxes[:, :, None], deltas, size, scales)
        detections = self.select(all_logits, boxes)
        masks = [
            head(roi_align(levels, self.strides, detections.boxes, head.bins))
            for head in self.mask_heads
        ]
        return MaskRCNNOutput(proposals, all_logits, all_deltas, detections, masks)

    @torch.no_grad()
    def select(self, logits: Sequence[Tensor], boxes: Tensor) -> Detections:
        """The best pairs of box and class, by the mean score of the stages.

        Args:
            logits: of every stage, (B, N, classes + 1).
            boxes: (B, N, classes or 1, 4), of the last stage.
        """
        scores = torch.stack([x.softmax(-1)[..., :-1] for x in logits]).mean(0)
        labels = torch.arange(self.classes, device=scores.device).expand(scores.shape)
        boxes = boxes.expand(*scores.shape, 4)
        scores, boxes, labels = best(
            scores.flatten(1), 1000, boxes.flatten(1, 2), labels.flatten(1)
        )
        scores = suppress(boxes, scores, labels, 0.5)
        scores, boxes, labels = best(scores, self.detections, boxes, labels)
        return Detections(boxes, scores, labels)


def _of_label(boxes: Tensor, labels: Tensor) -> Tensor:
    """Boxes (B, N, classes or 1, 4) of labels (B, N) -> (B, N, 4)."""
    if boxes.shape[2] == 1:
        return boxes[:, :, 0]
    return boxes.gather(2, labels[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
