"""Depthwise 3x3 convolution of a map minus its mean: EMSNet's whitening, after its 1x1."""

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


def centred_dwconv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve every channel, its mean removed: ``y = DWConv3x3(x - mean(x))``.

    The mean is taken over all pixels, per image and channel. Stride 1; padded with zeros after the
    mean is gone, so that outside the map there is nothing rather than ``-mean``.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        weight: ``(3, 3, C)``. float32 (float64 beside float64); 16-bit ones are converted.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or device.

    Source: EMSNet ("Efficient Vision Transformers with Multi-Scale and Partial Attentions"), Sec.
        3.3, Eq. 3.1 and 3.12. `hybrid_kernels.nn.whiten_conv` is the whole step.
    """
    return torch.ops.hybrid.centred_dwconv(x, widened(weight))[0]


def _fake(x, weight):
    return x.new_empty(x.shape), x.new_empty((x.shape[0], x.shape[3]), dtype=parameter_dtype(x))


def _fake_backward(grad, x, weight, mean, need_x, need_weight):
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(weight.shape if need_weight else (0,), dtype=parameter_dtype(x)),
    )


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx, grad, _):
    needs = ctx.needs_input_grad
    grads = torch.ops.hybrid.centred_dwconv_backward(grad, *ctx.saved_tensors, *needs)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _flops(x, *_, **__):
    return 2 * 9 * x.numel()


def _flops_backward(grad, x, weight, mean, need_x, need_weight, **_):
    return (need_x + need_weight) * _flops(x)


def _check(x, weight):
    op = "centred_dwconv"
    require_map(op, "x", x)
    require_pixels(op, x)
    C = x.shape[3]
    require(C > 0, f"{op}: x has shape {tuple(x.shape)}; expected at least one channel")
    require_parameter(op, "weight", weight, (3, 3, C), "(3, 3, C)", x)


def _check_backward(grad, x, weight, mean, need_x, need_weight):
    _check(x, weight)
    op = "centred_dwconv_backward"
    require_like(op, "grad", grad, x.shape, "(B, H, W, C), as x", x)
    require_parameter(op, "mean", mean, (x.shape[0], x.shape[3]), "(B, C)", x)


register(
    "centred_dwconv",
    module="centred_dwconv",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "centred_dwconv_backward",
    module="centred_dwconv",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
