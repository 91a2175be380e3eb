"""What the network learns from a label map, HoVer-Net Sec. 3.1."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

SMALLEST = 30  # pixels of a nucleus in the crop; smaller ones have no distance maps


class Targets(NamedTuple):
    """Targets of a crop."""

    foreground: np.ndarray  # (h, w) int64, 0 or 1
    distances: np.ndarray  # (2, h, w) float32: horizontal, vertical, in [-1, 1]


def make_targets(labels: np.ndarray, crop: int | None = None) -> Targets:
    """Foreground and distance maps.

    The distance of a pixel is its offset from the rounded centre of mass of its nucleus, divided
    such that every nucleus reaches from -1 to +1. Nuclei cut by the crop keep their whole shape's
    distances, unless fewer than 30 of their pixels are inside: those are 0, as outside nuclei.

    Args:
        labels: label map (H, W) of integers, 0 for the background.
        crop: side of the central square to return; None is all of the map.

    Raises:
        ValueError: labels is not two-dimensional, or smaller than the crop.
    """
    if labels.ndim != 2 or (crop is not None and min(labels.shape) < crop):
        raise ValueError(
            f"labels must be (H, W) with H, W >= crop = {crop}, got shape {labels.shape}"
        )
    cropped = labels if crop is None else central(labels, crop)
    distances = np.zeros((2, *labels.shape), dtype=np.float32)
    for label, pixels in zip(*np.unique(cropped, return_counts=True), strict=True):
        if label == 0 or pixels < SMALLEST:
            continue
        rows, columns = np.nonzero(labels == label)
        distances[0, rows, columns] = _scaled_offsets(columns)
        distances[1, rows, columns] = _scaled_offsets(rows)
    if crop is not None:
        distances = central(distances, crop)
    return Targets((cropped != 0).astype(np.int64), distances)


def _scaled_offsets(positions: np.ndarray) -> np.ndarray:
    """Positions on one axis -> offsets from their rounded mean, each side scaled to reach 1."""
    offsets = positions - np.floor(positions.mean() + 0.5)
    low, high = max(1, -offsets.min()), max(1, offsets.max())
    return np.where(offsets < 0, offsets / low, offsets / high)


def central(maps: np.ndarray | Tensor, side: int) -> np.ndarray | Tensor:
    """The central square of maps (..., H, W), a view (..., side, side)."""
    top, left = ((size - side) // 2 for size in maps.shape[-2:])
    return maps[..., top : top + side, left : left + side]
