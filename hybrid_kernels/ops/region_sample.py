"""Learned down-sampling: every region of r x r pixels becomes one token."""

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
from ._registration import register, require


def region_sample(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weighted sum over every region: ``s[p, q] = bias + sum_uv weight[u, v] * x[p*r+u, q*r+v]``.

    Pixels beyond the map count as zero: the last region of a row may be ragged, and ``r`` may
    exceed the map. It is a depthwise convolution with stride ``r``.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        weight: ``(r, r, C)``. float32 (float64 beside float64); 16-bit ones are converted.
        bias: ``(C,)`` in the dtype of ``weight``, or ``None``.

    Returns:
        ``(B, ceil(H / r), ceil(W / r), C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MRL ("Learning to mix with attention and convolutions"), Sec. 2.1, step 2.
    """
    return torch.ops.hybrid.region_sample(x, widened(weight), widened(bias))


def regions(size: int, region: int) -> int:
    """Regions along a side of the map."""
    return (size + region - 1) // region


def _fake(x, weight, bias):
    B, H, W, C = x.shape
    region = weight.shape[0]
    return x.new_empty(B, regions(H, region), regions(W, region), C)


def _fake_backward(grad, x, weight, dx_init, need_x, need_weight, need_bias):
    dtype = parameter_dtype(x)
    grad_x = x.new_empty(x.shape if need_x else (0,))
    grad_weight = x.new_empty(weight.shape if need_weight else (0,), dtype=dtype)
    return grad_x, grad_weight, x.new_empty((x.shape[3],) if need_bias else (0,), dtype=dtype)


def _setup_context(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad
    grads = torch.ops.hybrid.region_sample_backward(grad, *ctx.saved_tensors, None, *needed)
    return tuple(g if need else None for g, need in zip(grads, needed, strict=True))


def _flops(x, weight, bias, **_):
    B, H, W, C = x.shape
    region = weight.shape[0]
    return 2 * B * regions(H, region) * regions(W, region) * C * region**2


def _flops_backward(grad, x, weight, dx_init, need_x, need_weight, need_bias, **_):
    return (need_x + need_weight) * _flops(x, weight, None)


def _check(x, weight, bias):
    op = "region_sample"
    require_map(op, "x", x)
    require_pixels(op, x)
    region = weight.shape[0] if weight.dim() else 0
    require(
        region >= 1,
        f"{op}: weight has shape {tuple(weight.shape)}; expected (r, r, C) with r >= 1",
    )
    require_parameter(op, "weight", weight, (region, region, x.shape[3]), "(r, r, C)", x)
    require_parameter(op, "bias", bias, (x.shape[3],), "(C,)", x)


def _check_backward(grad, x, weight, dx_init, need_x, need_weight, need_bias):
    _check(x, weight, None)
    op = "region_sample_backward"
    require_like(op, "grad", grad, _fake(x, weight, None).shape, "(B, regions, regions, C)", x)
    if dx_init is not None:
        require_like(op, "dx_init", dx_init, x.shape, "(B, H, W, C), as x", x)
        require(need_x, f"{op}: dx_init is given but need_x is false")


register(
    "region_sample",
    module="region_sample",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "region_sample_backward",
    module="region_sample",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
