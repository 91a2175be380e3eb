"""Half-resolution sampling at learned offsets, MAT Sec. 4.3.2 (Bilinear patch embedding)."""

import torch
from torch import Tensor

from python_ref.ops.checks import check_map
from python_ref.ops.precision import statistics_dtype

Taps = list[tuple[Tensor, Tensor, int]]


def bilinear_sample(x: Tensor, offset: Tensor) -> Tensor:
    """Sample a map at half its resolution, at points moved by an offset.

    Output (i, j) reads the point (row 2 i + 0.5 + dy, column 2 j + 0.5 + dx), clamped to the map,
    where pixel (0, 0) has its centre at (0, 0). Offsets of zero give the mean of 2 x 2 pixels.
    Coordinates and weights are computed in float32 (float64 for float64).

    Args:
        x: feature map (B, H, W, C), H and W at least 1, any floating dtype, any strides.
        offset: (B, ceil(H / 2), ceil(W / 2), 2) with (dx, dy) in pixels of x; any floating dtype.
            bfloat16 loses fractions beyond 128 pixels.

    Returns:
        (B, ceil(H / 2), ceil(W / 2), C) in x's dtype.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, offset)
    rows, columns, _, _ = _points(x, offset)
    wide = x.to(statistics_dtype(x))
    out = sum(
        (row_weight * column_weight).unsqueeze(-1) * _gather(wide, row * x.shape[2] + column)
        for row, row_weight, _ in rows
        for column, column_weight, _ in columns
    )
    return out.to(x.dtype)


def bilinear_sample_backward(
    grad: Tensor, x: Tensor, offset: Tensor, need_x: bool, need_offset: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `bilinear_sample`.

    dx scatters grad to the four taps of every point with their weights. The gradient of an offset
    is the slope of the interpolation along its axis times grad, summed over channels; it is zero
    where the point was clamped.

    Args:
        grad: gradient of the output, (B, ceil(H / 2), ceil(W / 2), C).
        x, offset: as in the forward.
        need_x, need_offset: which gradients to compute.

    Returns:
        (dx, doffset) like x and offset; what is not needed has shape (0,).
    """
    _check(x, offset)
    rows, columns, row_free, column_free = _points(x, offset)
    wide, grad = x.to(statistics_dtype(x)), grad.to(statistics_dtype(x))
    grad_x = torch.zeros_like(wide).flatten(1, 2)
    slope_x, slope_y = torch.zeros_like(grad), torch.zeros_like(grad)
    for row, row_weight, row_sign in rows:
        for column, column_weight, column_sign in columns:
            index = row * x.shape[2] + column
            if need_x:
                share = (row_weight * column_weight).unsqueeze(-1) * grad
                grad_x.scatter_add_(1, _per_channel(index, x), share.flatten(1, 2))
            if need_offset:
                tap = _gather(wide, index)
                slope_x += (column_sign * row_weight).unsqueeze(-1) * tap
                slope_y += (row_sign * column_weight).unsqueeze(-1) * tap
    grad_dx = (slope_x * grad).sum(dim=-1) * column_free
    grad_dy = (slope_y * grad).sum(dim=-1) * row_free
    grad_offset = torch.stack([grad_dx, grad_dy], dim=-1).to(offset.dtype)
    return (
        grad_x.reshape(x.shape).to(x.dtype) if need_x else x.new_empty(0),
        grad_offset if need_offset else offset.new_empty(0),
    )


def _points(x: Tensor, offset: Tensor) -> tuple[Taps, Taps, Tensor, Tensor]:
    """The two taps (index, weight, sign of the slope) along rows and columns, and who is free.

    All are (B, H', W'); a coordinate is free where it was not clamped.
    """
    taps, free = [], []
    for axis, length in ((1, x.shape[1]), (2, x.shape[2])):
        shift = offset[..., 2 - axis].to(statistics_dtype(x))
        steps = torch.arange(offset.shape[axis], device=x.device, dtype=shift.dtype)
        position = 2 * (steps[:, None] if axis == 1 else steps) + 0.5 + shift
        clamped = position.clamp(0, length - 1)
        low = clamped.detach().floor()
        fraction = clamped - low
        low = low.long()
        taps.append([(low, 1 - fraction, -1), ((low + 1).clamp(max=length - 1), fraction, 1)])
        free.append((position >= 0) & (position <= length - 1))
    return taps[0], taps[1], free[0], free[1]


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, H, W, C) at flat pixel indices (B, H', W') -> (B, H', W', C)."""
    return x.flatten(1, 2).gather(1, _per_channel(index, x)).unflatten(1, index.shape[1:])


def _per_channel(index: Tensor, x: Tensor) -> Tensor:
    """(B, H', W') -> (B, H' * W', C), for gather and scatter."""
    return index.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[3])


def _check(x: Tensor, offset: Tensor) -> None:
    check_map(x)
    batch, height, width, _ = x.shape
    expected = (batch, -(-height // 2), -(-width // 2), 2)
    if tuple(offset.shape) != expected:
        raise ValueError(
            f"offset must be (B, ceil(H / 2), ceil(W / 2), 2) = {expected}, got "
            f"{tuple(offset.shape)}"
        )
