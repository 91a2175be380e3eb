"""Depthwise 3x3 convolutions of one map at several dilations."""

from collections.abc import Sequence

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

MAX_BRANCHES = 8
MAX_DILATION = 64


def atrous_dwconv(
    x: Tensor, weight: Tensor, dilations: Sequence[int], stride: int = 1
) -> list[Tensor]:
    """Convolve every channel with its own 3x3 kernel, once for each of ``n`` dilations.

    Zero padding as wide as the dilation, no bias: all branches have the same size. The map is read
    once for all of them.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        weight: ``(n, C, 3, 3)``, 1 to 8 branches. float32 (float64 beside float64); 16-bit ones
            are converted.
        dilations: Dilation of every branch, 1 to 64 pixels.
        stride: 1 or 2.

    Returns:
        ``n`` maps ``(B, ceil(H / stride), ceil(W / stride), C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: ACC-ViT ("Fusion of regional and sparse attention in Vision Transformers"), Sec. 2.4.
    """
    return torch.ops.hybrid.atrous_dwconv(x, widened(weight), list(dilations), stride)


def _out_shape(x, stride):
    B, H, W, C = x.shape
    return B, (H + stride - 1) // stride, (W + stride - 1) // stride, C


def _fake(x, weight, dilations, stride):
    return [x.new_empty(_out_shape(x, stride)) for _ in dilations]


def _fake_backward(grads, x, weight, dilations, stride, need_x, need_weight):
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(weight.shape if need_weight else (0,), dtype=parameter_dtype(x)),
    )


def _setup_context(ctx, inputs, output):
    x, weight, ctx.dilations, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grads):
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    shape = _out_shape(x, ctx.stride)
    grads = [x.new_zeros(shape) if grad is None else grad for grad in grads]
    grad_x, grad_weight = torch.ops.hybrid.atrous_dwconv_backward(
        grads, x, weight, ctx.dilations, ctx.stride, need_x, need_weight
    )
    return grad_x if need_x else None, grad_weight if need_weight else None, None, None


def _flops(x, weight, dilations, stride, **_):
    B, H, W, C = _out_shape(x, stride)
    return 2 * 9 * len(dilations) * B * H * W * C


def _flops_backward(grads, x, weight, dilations, stride, need_x, need_weight, **_):
    return (need_x + need_weight) * _flops(x, weight, dilations, stride)


def _check(x, weight, dilations, stride):
    op, n = "atrous_dwconv", len(dilations)
    require_map(op, "x", x)
    require_pixels(op, x)
    require(
        1 <= n <= MAX_BRANCHES,
        f"{op}: dilations = {tuple(dilations)}; expected 1 to {MAX_BRANCHES} of them",
    )
    require(
        all(1 <= d <= MAX_DILATION for d in dilations),
        f"{op}: dilations = {tuple(dilations)}; expected each from 1 to {MAX_DILATION}",
    )
    require(stride in (1, 2), f"{op}: stride = {stride}; expected 1 or 2")
    require_parameter(op, "weight", weight, (n, x.shape[3], 3, 3), "(branches, C, 3, 3)", x)


def _check_backward(grads, x, weight, dilations, stride, need_x, need_weight):
    _check(x, weight, dilations, stride)
    op = "atrous_dwconv_backward"
    require(
        len(grads) == len(dilations),
        f"{op}: grads has {len(grads)} entries; expected one for each of the {len(dilations)} "
        "branches",
    )
    for k, grad in enumerate(grads):
        require_like(op, f"grads[{k}]", grad, _out_shape(x, stride), "(B, H', W', C)", x)


register(
    "atrous_dwconv",
    module="atrous_dwconv",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "atrous_dwconv_backward",
    module="atrous_dwconv",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
