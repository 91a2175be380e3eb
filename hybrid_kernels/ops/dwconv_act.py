"""Depthwise 3x3 convolution with bias and activation: the middle of many feed-forward layers."""

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

ACTIVATIONS = ("none", "relu", "relu6", "gelu", "hardswish")


def dwconv_act(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    """Convolve every channel with its own 3x3 kernel: ``y = act(DWConv3x3(x) + bias)``.

    Stride 1, zero padding 1. A residual inside, ``act(x + DWConv3x3(x))``, is the same with 1
    added to the centre of the kernels.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        weight: ``(3, 3, C)``. float32 (float64 beside float64); 16-bit ones are converted.
        bias: ``(C,)`` in the dtype of ``weight``, or ``None``.
        act: ``"none"``, ``"relu"``, ``"relu6"``, ``"gelu"`` (the exact one) or ``"hardswish"``.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MSCSA ("Vision backbone enhancement via multi-stage cross-scale attention"), Sec. 3.4;
    with GELU the feed-forward layer of PVTv2, with 1 in the centre that of Shunted Transformer.
    """
    return torch.ops.hybrid.dwconv_act(x, widened(weight), widened(bias), act)


def _fake(x, weight, bias, act):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, weight, bias, act, need_x, need_weight, need_bias):
    dtype = parameter_dtype(x)
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty((3, 3, x.shape[3]) if need_weight else (0,), dtype=dtype),
        x.new_empty((x.shape[3],) if need_bias else (0,), dtype=dtype),
    )


def _setup_context(ctx, inputs, output):
    x, weight, bias, ctx.act = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, grad):
    needs = ctx.needs_input_grad[:3]
    grads = torch.ops.hybrid.dwconv_act_backward(grad, *ctx.saved_tensors, ctx.act, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


def _flops(x, *_, **__):
    return 2 * 9 * x.numel()


def _flops_backward(grad, x, weight, bias, act, need_x, need_weight, need_bias, **_):
    return (need_x + need_weight) * _flops(x)


def _check(x, weight, bias, act):
    op = "dwconv_act"
    require_map(op, "x", x)
    require_pixels(op, x)
    C = x.shape[3]
    require_parameter(op, "weight", weight, (3, 3, C), "(3, 3, C)", x)
    require_parameter(op, "bias", bias, (C,), "(C,)", x)
    require(act in ACTIVATIONS, f"{op}: act = {act!r}; expected one of {', '.join(ACTIVATIONS)}")


def _check_backward(grad, x, weight, bias, act, need_x, need_weight, need_bias):
    _check(x, weight, bias, act)
    op = "dwconv_act_backward"
    require_like(op, "grad", grad, x.shape, "(B, H, W, C), as x", x)
    require(not need_bias or bias is not None, f"{op}: need_bias is true but bias is None")


register(
    "dwconv_act",
    module="dwconv_act",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "dwconv_act_backward",
    module="dwconv_act",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
