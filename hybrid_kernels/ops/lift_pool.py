"""Depthwise lifting convolution and pooling over the group: a 3x3 stencil without a direction."""

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

ELEMENTS = {"p4": 4, "p4m": 8}
REDUCTIONS = ("max", "mean")


def lift_pool(x: Tensor, weight: Tensor, group: str = "p4", reduce: str = "max") -> Tensor:
    """Convolve every channel with all orientations of its 3x3 kernel, and pool over them.

    ``y = reduce_e DWConv3x3(x, act_e(weight))``, stride 1, zero padding 1. Element ``e`` of the
    group flips the kernel's columns if it is a mirror, then turns the kernel counter-clockwise;
    without mirrors first. So the output turns with the input: ``y(rot90 x) = rot90 y(x)``. The
    responses of the single orientations are never stored.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        weight: ``(3, 3, C)``. float32 (float64 beside float64); 16-bit ones are converted.
        group: ``"p4"`` (4 rotations) or ``"p4m"`` (with mirrors, 8 elements).
        reduce: ``"max"`` or ``"mean"``. Of equal responses the first counts, which decides who
            receives the gradient; NaN is larger than every number.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MRL ("Learning to mix with attention and convolutions"), group convolutions of Sec. 4.3;
    the lifting of Cohen & Welling 2016.
    """
    return torch.ops.hybrid.lift_pool(x, widened(weight), group, reduce)


def _fake(x, weight, group, reduce):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, weight, group, reduce, need_x, need_weight):
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty((3, 3, x.shape[3]) if need_weight else (0,), dtype=parameter_dtype(x)),
    )


def _setup_context(ctx, inputs, output):
    x, weight, ctx.group, ctx.reduce = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    needs = ctx.needs_input_grad[:2]
    options = (ctx.group, ctx.reduce)
    grads = torch.ops.hybrid.lift_pool_backward(grad, *ctx.saved_tensors, *options, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None


def _flops(x, weight, group, reduce, **_):
    """The mean is one convolution with the mean kernel."""
    return 2 * 9 * x.numel() * (ELEMENTS[group] if reduce == "max" else 1)


def _flops_backward(grad, x, weight, group, reduce, need_x, need_weight, **_):
    """Under the maximum the winners are found again; they alone have a gradient."""
    again = _flops(x, weight, group, reduce) if reduce == "max" else 0
    return again + (need_x + need_weight) * 2 * 9 * x.numel()


def _check(x, weight, group, reduce):
    op = "lift_pool"
    require_map(op, "x", x)
    require_pixels(op, x)
    require_parameter(op, "weight", weight, (3, 3, x.shape[3]), "(3, 3, C)", x)
    for name, value, known in (("group", group, ELEMENTS), ("reduce", reduce, REDUCTIONS)):
        require(value in known, f"{op}: {name} = {value!r}; expected {' or '.join(known)}")


def _check_backward(grad, x, weight, group, reduce, need_x, need_weight):
    _check(x, weight, group, reduce)
    require_like("lift_pool_backward", "grad", grad, x.shape, "(B, H, W, C), as x", x)


register(
    "lift_pool",
    module="lift_pool",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "lift_pool_backward",
    module="lift_pool",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
