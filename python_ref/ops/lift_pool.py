"""Depthwise lifting convolution and pooling over the group: group convolutions of MRL, Sec. 4.3.

A plain depthwise 3x3 sees an edge in the one orientation that it has learned. Lifting (Cohen &
Welling 2016) applies the same kernel in all 4 orientations (p4), or 8 with mirrors (p4m), and the
pooling over them makes the output turn with the input.
"""

import torch
from torch import Tensor

from python_ref.ops.checks import check_map
from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype

_MIRRORS = {"p4": (False,), "p4m": (False, True)}


def lift_pool(x: Tensor, weight: Tensor, group: str, reduce: str) -> Tensor:
    """Convolve with every orientation of the kernels and pool over the orientations.

    y = reduce_e conv(x, act_e(weight)), zero padding 1. Element e = (m, s), in the order (0, 0) ..
    (0, 3), (1, 0) .. (1, 3): flip the columns if m, then turn counter-clockwise by s * 90 degrees.

    Args:
        x: map (B, H, W, C), any floating dtype.
        weight: kernels (3, 3, C).
        group: "p4" (4 rotations) or "p4m" (with mirrors, 8 elements).
        reduce: "max" or "mean". The maximum of equal values is the first of them, which decides
            who receives the gradient; NaN in any orientation gives NaN.

    Returns:
        y (B, H, W, C) in x's dtype.

    Raises:
        ValueError: shapes do not fit, or group or reduce is unknown.
    """
    _check(x, weight, group, reduce)
    kernels = _orientations(weight, group)
    if reduce == "mean":
        return depthwise(x, torch.stack(kernels).mean(dim=0))
    return _pool(x, kernels)[0]


def lift_pool_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    group: str,
    reduce: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `lift_pool`; the winning orientation of every output is found again.

    Only the winner receives: dx from the winner's kernel, and the gradient of that kernel turned
    back by act_e^-1 into dweight. Under the mean every orientation receives its share of grad.

    Args:
        grad: gradient of y, (B, H, W, C).
        x, weight, group, reduce: as in the forward.
        need_x, need_weight: which gradients to compute.

    Returns:
        (dx, dweight); dweight in float32 (float64); what is not needed has shape (0,).
    """
    _check(x, weight, group, reduce)
    wide = statistics_dtype(x)
    grad, values, kernels = grad.to(wide), x.to(wide), _orientations(weight.to(wide), group)
    if reduce == "mean":
        shares = [grad / len(kernels)] * len(kernels)
    else:
        _, winner = _pool(values, kernels)
        shares = [grad * (winner == e) for e in range(len(kernels))]
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0, dtype=wide)
    if need_x:
        parts = zip(shares, kernels, strict=True)
        grad_x = sum(depthwise_backward_input(g, k, *x.shape[1:3]) for g, k in parts).to(x.dtype)
    if need_weight:
        turned = [depthwise_backward_weight(share, values, 3) for share in shares]
        grad_weight = _turned_back(turned, group)
    return grad_x, grad_weight


def _pool(x: Tensor, kernels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Maximum over the orientations, and the first orientation that reaches it."""
    best = depthwise(x, kernels[0])
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for e, kernel in enumerate(kernels[1:], start=1):
        y = depthwise(x, kernel)
        better = (y > best) | (y.isnan() & ~best.isnan())
        best = torch.where(better, y, best)
        winner = torch.where(better, e, winner)
    return best, winner


def _orientations(weight: Tensor, group: str) -> list[Tensor]:
    """act_e(weight) of every element e, each (3, 3, C)."""
    return [
        (weight.flip(1) if mirror else weight).rot90(turns, (0, 1))
        for mirror in _MIRRORS[group]
        for turns in range(4)
    ]


def _turned_back(kernels: list[Tensor], group: str) -> Tensor:
    """sum_e act_e^-1(kernel_e), the adjoint of `_orientations`."""
    total = torch.zeros_like(kernels[0])
    for e, kernel in enumerate(kernels):
        upright = kernel.rot90(-(e % 4), (0, 1))
        total += upright.flip(1) if _MIRRORS[group][e // 4] else upright
    return total


def _check(x: Tensor, weight: Tensor, group: str, reduce: str) -> None:
    check_map(x)
    check_depthwise(x, weight, 3)
    check_group(group, reduce)


def check_group(group: str, reduce: str) -> None:
    """Refuse a group or a reduction that `lift_pool` does not know."""
    if group not in _MIRRORS:
        raise ValueError(f"group must be 'p4' or 'p4m', got {group!r}")
    if reduce not in ("max", "mean"):
        raise ValueError(f"reduce must be 'max' or 'mean', got {reduce!r}")
