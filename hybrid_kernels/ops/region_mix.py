"""Local mix of MRL: regional tokens returned to their pixels, and a depthwise convolution."""

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
from .region_sample import regions

SIDES = (1, 3, 5, 7)


def region_mix(
    x: Tensor, g: Tensor, weight: Tensor, region: int, bias: Tensor | None = None
) -> Tensor:
    """Add to every pixel the token of its region, then convolve every channel by itself.

    ``z[i, j] = x[i, j] + g[i // r, j // r]``, zero outside the map, and
    ``y[i, j] = bias + sum_uv weight[u, v] * z[i + u - k // 2, j + v - k // 2]``. ``z`` is never
    stored, nor rounded.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        g: ``(B, ceil(H / r), ceil(W / r), C)`` in ``x``'s dtype; any strides.
        weight: ``(k, k, C)`` with ``k`` 1, 3, 5 or 7. float32 (float64 beside float64); 16-bit
            ones are converted.
        region: Side ``r`` >= 1 of a region, in pixels.
        bias: ``(C,)`` in the dtype of ``weight``, or ``None``.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MRL ("Learning to mix with attention and convolutions"), Sec. 2.1, steps 4 and 5.
    """
    return torch.ops.hybrid.region_mix(x, g, widened(weight), region, widened(bias))


def _fake(x, g, weight, region, bias):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, g, weight, region, need_x, need_g, need_weight, need_bias):
    dtype = parameter_dtype(x)
    grad_x = x.new_empty(x.shape if need_x else (0,))
    grad_g = x.new_empty(g.shape if need_g else (0,))
    grad_weight = x.new_empty(weight.shape if need_weight else (0,), dtype=dtype)
    grad_bias = x.new_empty((x.shape[3],) if need_bias else (0,), dtype=dtype)
    return grad_x, grad_g, grad_weight, grad_bias


def _setup_context(ctx, inputs, output):
    x, g, weight, ctx.region, _ = inputs
    ctx.save_for_backward(x, g, weight)


def _backward(ctx, grad):
    need_x, need_g, need_weight, _, need_bias = ctx.needs_input_grad
    needed = (need_x, need_g, need_weight, need_bias)
    grads = torch.ops.hybrid.region_mix_backward(grad, *ctx.saved_tensors, ctx.region, *needed)
    grad_x, grad_g, grad_weight, grad_bias = (
        g if need else None for g, need in zip(grads, needed, strict=True)
    )
    return grad_x, grad_g, grad_weight, None, grad_bias


def _flops(x, g, weight, region, bias, **_):
    return 2 * x.numel() * weight.shape[0] ** 2


def _flops_backward(grad, x, g, weight, region, need_x, need_g, need_weight, need_bias, **_):
    return ((need_x or need_g) + need_weight) * _flops(x, g, weight, region, None)


def _check(x, g, weight, region, bias):
    op = "region_mix"
    require_map(op, "x", x)
    require_pixels(op, x)
    require(region >= 1, f"{op}: region = {region}; expected >= 1")
    B, H, W, C = x.shape
    tokens = (B, regions(H, region), regions(W, region), C)
    require_like(op, "g", g, tokens, "(B, ceil(H / region), ceil(W / region), C)", x)
    side = weight.shape[0] if weight.dim() else 0
    require(
        side in SIDES,
        f"{op}: weight has shape {tuple(weight.shape)}; expected (k, k, C) with k = 1, 3, 5 or 7",
    )
    require_parameter(op, "weight", weight, (side, side, C), "(k, k, C)", x)
    require_parameter(op, "bias", bias, (C,), "(C,)", x)


def _check_backward(grad, x, g, weight, region, need_x, need_g, need_weight, need_bias):
    _check(x, g, weight, region, None)
    require_like("region_mix_backward", "grad", grad, x.shape, "(B, H, W, C), as x", x)


register(
    "region_mix",
    module="region_mix",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x", "g"),
    flops=_flops,
)
register(
    "region_mix_backward",
    module="region_mix",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
