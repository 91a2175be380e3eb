"""The parallel convolution path of attention: a stencil over the activated values, added."""

import torch
from torch import Tensor

from ._maps import (
    parameter_dtype,
    require_affine,
    require_like,
    require_map,
    require_parameter,
    require_pixels,
    widened,
)
from ._registration import register, require


def value_conv(
    out: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Add position to the output of an attention: ``z = out + DWConv3x3(hardswish(v)) + bias``.

    With ``scale`` and ``shift``, the folded norm that follows, the result is ``hardswish(scale * z
    + shift)``; training needs ``z`` itself, for its statistics. Stride 1, zero padding 1.

    Args:
        out: Output of the attention ``(B, H, W, C)``, with at least one pixel. float32, bfloat16,
            float16, or float64 (CPU); any strides, fastest with the channels side by side.
        v: Values of the finest scale, ``(B, H, W, C)`` in the dtype of ``out``, any strides.
        weight: ``(3, 3, C)``. float32 (float64 beside float64); 16-bit ones are converted.
        bias: ``(C,)`` in the dtype of ``weight``.
        scale: ``(C,)`` in the dtype of ``weight``, or ``None``.
        shift: The same; both or neither are given.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``out``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or device, or only one of
            ``scale`` and ``shift`` is given.

    Source: MSCSA ("Vision backbone enhancement via multi-stage cross-scale attention"), Eqs. 8-9.
    """
    parameters = map(widened, (weight, bias, scale, shift))
    return torch.ops.hybrid.value_conv(out, v, *parameters)


def _fake(out, v, weight, bias, scale, shift):
    return out.new_empty(out.shape)


def _fake_backward(
    grad, out, v, weight, bias, scale, shift, need_out, need_v, need_parameters, need_affine
):
    C, dtype = out.shape[3], parameter_dtype(out)
    return (
        out.new_empty(out.shape if need_out else (0,)),
        v.new_empty(v.shape if need_v else (0,)),
        out.new_empty((3, 3, C) if need_parameters else (0,), dtype=dtype),
        *(
            out.new_empty((C,) if need else (0,), dtype=dtype)
            for need in (need_parameters, need_affine, need_affine)
        ),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    saved, needs = ctx.saved_tensors, ctx.needs_input_grad
    has_norm = saved[4] is not None
    asked = (
        needs[0] and has_norm,  # without a norm the gradient of out is that of the result
        needs[1],
        needs[2] or needs[3],
        needs[4] or needs[5],
    )
    grads = list(torch.ops.hybrid.value_conv_backward(grad, *saved, *asked))
    if not has_norm:
        grads[0] = grad
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _flops(out, *_, **__):
    return 2 * 9 * out.numel()


def _flops_backward(
    grad, out, v, weight, bias, scale, shift, need_out, need_v, need_parameters, need_affine, **_
):
    """With a norm, z is computed again."""
    return (need_v + need_parameters + (scale is not None)) * _flops(out)


def _check(out, v, weight, bias, scale, shift):
    op = "value_conv"
    require_map(op, "out", out)
    require_pixels(op, out, "out")
    C = out.shape[3]
    require_like(op, "v", v, out.shape, "(B, H, W, C), as out", out)
    require_parameter(op, "weight", weight, (3, 3, C), "(3, 3, C)", out)
    require_parameter(op, "bias", bias, (C,), "(C,)", out)
    require_affine(op, scale, shift, C, out)


def _check_backward(
    grad, out, v, weight, bias, scale, shift, need_out, need_v, need_parameters, need_affine
):
    _check(out, v, weight, bias, scale, shift)
    op = "value_conv_backward"
    require_like(op, "grad", grad, out.shape, "(B, H, W, C), as out", out)
    require(not need_affine or scale is not None, f"{op}: need_affine is true but scale is None")


register(
    "value_conv",
    module="value_conv",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("out", "v"),
    flops=_flops,
)
register(
    "value_conv_backward",
    module="value_conv",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
