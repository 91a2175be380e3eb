"""Anchors, box arithmetic and non-maximum suppression, all with shapes fixed by their inputs.

A box is (left, top, right, bottom) in pixels of the image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)  # of a side, so that exp never overflows


def grid_anchors(level: Tensor, stride: int, sides: Sequence[float]) -> Tensor:
    """Boxes of every area side**2 and aspect ratio 1/2, 1, 2 around every position of a level.

    Args:
        level: (B, C, H, W); only its size, precision and device are used.
        stride: pixels of the image per position.
        sides: of the square anchors, in pixels.

    Returns:
        (H * W * A, 4) with A = 3 * len(sides), in the order of `flatten_positions`; float32, or
        float64 if the level is.
    """
    # Pixels of a large image are no whole numbers in 16 bits.
    options = {"dtype": torch.promote_types(level.dtype, torch.float32), "device": level.device}
    height, width = level.shape[-2:]
    shapes = [(s * math.sqrt(r), s / math.sqrt(r)) for r in (0.5, 1.0, 2.0) for s in sides]
    half = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for h, w in shapes], **options)
    top = torch.arange(height, **options)[:, None].expand(height, width) * stride
    left = torch.arange(width, **options).expand(height, width) * stride
    centres = torch.stack([left, top, left, top], dim=-1)
    return (centres[:, :, None] + half).reshape(-1, 4)


def flatten_positions(x: Tensor, channels: int) -> Tensor:
    """(B, A * channels, H, W) -> (B, H * W * A, channels)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)


def decode_boxes(
    boxes: Tensor, deltas: Tensor, size: Sequence[int], scales: Sequence[float] = (1, 1, 1, 1)
) -> Tensor:
    """Move boxes by predicted deltas and clip them to the image, "Fast R-CNN" appendix C.

    Args:
        boxes: (..., 4).
        deltas: (..., 4), shifts of the centre in units of the sides, then logarithms of growth.
        size: height and width of the image.
        scales: what a unit of every delta stands for.

    Returns:
        (..., 4), broadcast.
    """
    dx, dy, dw, dh = (deltas * deltas.new_tensor(scales)).unbind(-1)
    left, top, right, bottom = boxes.unbind(-1)
    width, height = right - left, bottom - top
    x, y = left + width * (0.5 + dx), top + height * (0.5 + dy)
    half_width = 0.5 * width * dw.clamp(max=LARGEST_GROWTH).exp()
    half_height = 0.5 * height * dh.clamp(max=LARGEST_GROWTH).exp()
    xs = [(x - half_width).clamp(0, size[1]), (x + half_width).clamp(0, size[1])]
    ys = [(y - half_height).clamp(0, size[0]), (y + half_height).clamp(0, size[0])]
    return torch.stack([xs[0], ys[0], xs[1], ys[1]], dim=-1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes a (..., N, 4) and b (..., M, 4) -> (..., N, M)."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    union = areas[0] + areas[1] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou: float) -> Tensor:
    """Scores with 0 for every box that overlaps a better one: Fast NMS, YOLACT Sec. 3.3.

    A single matrix operation instead of a loop. It differs from the sequential form in that boxes
    already suppressed suppress others.

    Args:
        boxes: (B, N, 4), sorted by falling scores.
        scores: (B, N), non-negative.
        labels: (B, N); boxes with different labels do not suppress each other. None: all are alike.
        iou: overlap above which the worse box goes.
    """
    overlaps = pairwise_iou(boxes, boxes).triu(diagonal=1)
    if labels is not None:
        overlaps = overlaps * (labels[:, :, None] == labels[:, None, :])
    return scores * (overlaps.amax(dim=1) <= iou)


def best(scores: Tensor, count: int, *others: Tensor) -> tuple[Tensor, ...]:
    """The `count` highest scores (B, N) of every image, falling, and their rows of `others`.

    All of them if there are fewer. `others` are (B, N) or (B, N, K).
    """
    scores, index = scores.topk(min(count, scores.shape[1]), dim=1)
    rows = [
        other.gather(
            1, index if other.ndim == 2 else index[..., None].expand(-1, -1, other.shape[2])
        )
        for other in others
    ]
    return scores, *rows
