"""Fixed-size crops of a feature pyramid, "Mask R-CNN" Sec. 3."""

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 2  # per bin and axis
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 2  # a box as large as ImageNet's images takes level 2 of 4


def assign_levels(boxes: Tensor, levels: int) -> Tensor:
    """Boxes (..., 4) -> index of their pyramid level (...), larger boxes on coarser ones.

    "Feature Pyramid Networks", Eq. 1.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).prod(-1).clamp(min=0).sqrt()
    level = CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE + 1e-6)
    return level.floor().clamp(0, levels - 1).long()


def roi_align(levels: Sequence[Tensor], strides: Sequence[int], boxes: Tensor, bins: int) -> Tensor:
    """Crop every box from its level, by the mean of 2 x 2 bilinear samples per bin.

    Sample coordinates are continuous: position 0 of a map covers [0, stride) of the image. Samples
    outside a map take its border. The maps lie one after the other in a single table, so that
    boxes of all levels are read at once and shapes do not depend on the boxes.

    Args:
        levels: maps (B, C, H_i, W_i), finest first.
        strides: of the maps.
        boxes: (B, N, 4); no gradient flows to them.
        bins: side of the crop.

    Returns:
        (B, N, C, bins, bins).
    """
    boxes = boxes.detach()
    batch, channels = levels[0].shape[:2]
    level = assign_levels(boxes, len(levels))
    table = torch.cat([x.flatten(2) for x in levels], dim=2).transpose(1, 2)
    table = table.reshape(-1, channels)

    def per_box(values: list[int]) -> Tensor:
        return torch.tensor(values, device=boxes.device)[level][..., None, None]

    pixels = [x.shape[2] * x.shape[3] for x in levels]
    image = torch.arange(batch, device=boxes.device).view(-1, 1, 1, 1) * sum(pixels)
    start = image + per_box([sum(pixels[:index]) for index in range(len(levels))])
    heights, widths = (per_box([x.shape[axis] for x in levels]) for axis in (2, 3))
    left, top, right, bottom = (boxes[..., None] / per_box(list(strides))).unbind(-2)

    samples = torch.arange(bins * SAMPLES, device=boxes.device, dtype=boxes.dtype)
    fractions = ((samples + 0.5) / (bins * SAMPLES)).view(bins, SAMPLES)
    precise = torch.promote_types(table.dtype, torch.float32)
    crop = table.new_zeros(*boxes.shape[:2], bins, bins, channels, dtype=precise)
    for a in range(SAMPLES):
        for b in range(SAMPLES):
            y = top + (bottom - top) * fractions[:, a] - 0.5
            x = left + (right - left) * fractions[:, b] - 0.5
            for rows, row_weights in _taps(y, heights[..., 0]):
                for columns, column_weights in _taps(x, widths[..., 0]):
                    index = start + rows[..., :, None] * widths + columns[..., None, :]
                    weight = row_weights[..., :, None] * column_weights[..., None, :]
                    crop = crop + table[index] * weight[..., None].to(precise)
    return (crop / SAMPLES**2).to(table.dtype).permute(0, 1, 4, 2, 3)


def _taps(position: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two neighbours of positions (B, N, bins) on an axis, and their linear weights."""
    position = torch.minimum(position.clamp(min=0), size - 1)
    first = position.floor()
    second = torch.minimum(first + 1, size - 1)
    weight = position - first
    return [(first.long(), 1 - weight), (second.long(), weight)]
