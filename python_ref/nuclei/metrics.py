"""Metrics of instance segmentation, on label maps of one image: 0 is background.

Two empty maps agree (every metric is 1); an empty one and another do not (0). Averages over a data
set are averages of the images' values.
"""

from typing import NamedTuple

import numpy as np


class Quality(NamedTuple):
    """Panoptic quality and its factors: detection quality and segmentation quality."""

    dq: float
    sq: float
    pq: float


class _Overlaps(NamedTuple):
    """Pixels that instances have and share, in the order of their ids."""

    shared: np.ndarray  # (T, P)
    truth: np.ndarray  # (T,)
    predicted: np.ndarray  # (P,)

    @property
    def iou(self) -> np.ndarray:
        return self.shared / (self.truth[:, None] + self.predicted - self.shared)


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """2 |T and P| / (|T| + |P|) of the foregrounds.

    Args:
        truth: label map (H, W) of integers.
        predicted: likewise.

    Raises:
        ValueError: the maps differ in shape, are not two-dimensional, or hold no integers.
    """
    _check(truth, predicted)
    total = np.count_nonzero(truth) + np.count_nonzero(predicted)
    if total == 0:
        return 1.0
    return 2 * np.count_nonzero((truth != 0) & (predicted != 0)) / total


def aggregated_jaccard(truth: np.ndarray, predicted: np.ndarray) -> float:
    """AJI, Kumar et al. 2017: shared pixels over united pixels of truths and their predictions.

    Every true instance takes the overlapping prediction with the highest IoU (the lowest id if two
    are equal), even if another took it too. Instances left alone on either side enter the union.

    Arguments and errors as in `dice`.
    """
    shared, true_sizes, predicted_sizes = overlaps = _overlaps(truth, predicted)
    if not len(true_sizes) or not len(predicted_sizes):
        return float(len(true_sizes) == len(predicted_sizes))
    rows = np.arange(len(true_sizes))
    taken = overlaps.iou.argmax(axis=1)
    pixels = shared[rows, taken]
    intersection = pixels.sum()
    # Where the best IoU is 0 the truth overlaps nothing, and takes nothing.
    union = (true_sizes + np.where(pixels > 0, predicted_sizes[taken] - pixels, 0)).sum()
    union += np.delete(predicted_sizes, taken[pixels > 0]).sum()
    return float(intersection / union)


def panoptic_quality(truth: np.ndarray, predicted: np.ndarray) -> Quality:
    """DQ = TP / (TP + FP / 2 + FN / 2), SQ = mean IoU of the matches, PQ = DQ * SQ.

    Instances match if their IoU exceeds 1/2, which makes matches unique. Without a match SQ is 0.

    Arguments and errors as in `dice`.
    """
    overlaps = _overlaps(truth, predicted)
    instances = len(overlaps.truth) + len(overlaps.predicted)
    if instances == 0:
        return Quality(1.0, 1.0, 1.0)
    ious = overlaps.iou
    matched = ious[ious > 0.5]
    dq = 2 * len(matched) / instances
    sq = float(matched.mean()) if len(matched) else 0.0
    return Quality(dq, sq, dq * sq)


def _overlaps(truth: np.ndarray, predicted: np.ndarray) -> _Overlaps:
    _check(truth, predicted)
    true_ids, true_index = np.unique(truth, return_inverse=True)
    predicted_ids, predicted_index = np.unique(predicted, return_inverse=True)
    table = np.zeros((len(true_ids), len(predicted_ids)), dtype=np.int64)
    np.add.at(table, (true_index.ravel(), predicted_index.ravel()), 1)
    true_rows, predicted_columns = true_ids != 0, predicted_ids != 0
    return _Overlaps(
        table[true_rows][:, predicted_columns],
        table.sum(axis=1)[true_rows],
        table.sum(axis=0)[predicted_columns],
    )


def _check(truth: np.ndarray, predicted: np.ndarray) -> None:
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise ValueError(
            "truth and predicted must be label maps (H, W) of one image, got shapes "
            f"{truth.shape} and {predicted.shape}"
        )
    for name, labels in (("truth", truth), ("predicted", predicted)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must hold integers, got {labels.dtype}; cast it")
