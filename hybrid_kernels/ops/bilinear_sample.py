"""Bilinear samples of a map at half its resolution, at learned offsets."""

import torch
from torch import Tensor

from ._maps import (
    parameter_dtype,
    require_like,
    require_map,
    require_parameter,
    require_pixels,
    widened,
)
from ._registration import register


def bilinear_sample(x: Tensor, offset: Tensor) -> Tensor:
    """Sample a map once for every 2 x 2 pixels, at points moved from their middle.

    Output ``(i, j)`` reads the point in row ``2 i + 0.5 + dy`` and column ``2 j + 0.5 + dx``,
    clamped to the map, where pixel (0, 0) has its centre at (0, 0). Offsets of zero give the mean
    of 2 x 2 pixels. Points are found in float32 (float64 for float64). No grid is built, and the
    gradient of ``x`` is added up in a fixed order on every device.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        offset: ``(B, ceil(H / 2), ceil(W / 2), 2)`` with ``(dx, dy)`` in pixels of ``x``. float32
            (float64 beside float64); 16-bit ones are converted, but bfloat16 has lost fractions
            beyond 128 pixels.

    Returns:
        ``(B, ceil(H / 2), ceil(W / 2), C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or device.

    Source: MAT, Sec. 4.3.2 (Bilinear patch embedding).
    """
    return torch.ops.hybrid.bilinear_sample(x, widened(offset))


def _halved(x):
    return (x.shape[0], (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2)


def _fake(x, offset):
    return x.new_empty((*_halved(x), x.shape[3]))


def _fake_backward(grad, x, offset, need_x, need_offset):
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(offset.shape if need_offset else (0,), dtype=parameter_dtype(x)),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needs = ctx.needs_input_grad
    grads = torch.ops.hybrid.bilinear_sample_backward(grad, *ctx.saved_tensors, *needs)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _flops(x, offset, **_):
    """Four products and their sum for every output."""
    return 4 * offset.numel() * x.shape[3]


def _flops_backward(grad, x, offset, need_x, need_offset, **_):
    return (need_x + 2 * need_offset) * _flops(x, offset)


def _check(x, offset):
    op = "bilinear_sample"
    require_map(op, "x", x)
    require_pixels(op, x)
    meaning = "(B, ceil(H / 2), ceil(W / 2), 2)"
    require_parameter(op, "offset", offset, (*_halved(x), 2), meaning, x)


def _check_backward(grad, x, offset, need_x, need_offset):
    _check(x, offset)
    shape = (*_halved(x), x.shape[3])
    require_like("bilinear_sample", "grad", grad, shape, "(B, H', W', C), as the output", x)


register(
    "bilinear_sample",
    module="bilinear_sample",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "bilinear_sample_backward",
    module="bilinear_sample",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
