"""Two coarser scales of a map, by strided depthwise convolutions in one pass."""

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

# Side and stride of the two kernels.
SCALES = ((3, 2), (5, 3))


def downsample_pair(
    x: Tensor,
    weight3: Tensor,
    weight5: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise 3x3 with stride 2 and depthwise 5x5 with stride 3 of one map, without bias.

    With ``scale`` and ``shift``, the folded norm before them, both see ``scale * x + shift``. The
    zero padding stays zero: the shift belongs to the pixels of the map alone.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        weight3: ``(3, 3, C)``, padding 1. float32 (float64 beside float64); 16-bit parameters are
            converted.
        weight5: ``(5, 5, C)``, padding 2, in the dtype of ``weight3``.
        scale: ``(C,)`` in the dtype of ``weight3``, or ``None``.
        shift: The same; both or neither are given.

    Returns:
        ``x1 (B, ceil(H / 2), ceil(W / 2), C)`` and ``x2 (B, ceil(H / 3), ceil(W / 3), C)``,
        contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or device, or only one of
            ``scale`` and ``shift`` is given.

    Source: MSCSA ("Vision backbone enhancement via multi-stage cross-scale attention"), Sec. 3.2,
        Eq. 3.
    """
    parameters = map(widened, (weight3, weight5, scale, shift))
    return torch.ops.hybrid.downsample_pair(x, *parameters)


def _sizes(x):
    B, H, W, C = x.shape
    return [(B, (H + s - 1) // s, (W + s - 1) // s, C) for _, s in SCALES]


def _fake(x, weight3, weight5, scale, shift):
    return tuple(x.new_empty(size) for size in _sizes(x))


def _fake_backward(
    grad1, grad2, x, weight3, weight5, scale, shift, need_x, need_weights, need_affine
):
    C, dtype = x.shape[3], parameter_dtype(x)
    parameters = (
        ((3, 3, C), need_weights),
        ((5, 5, C), need_weights),
        ((C,), need_affine),
        ((C,), need_affine),
    )
    return (
        x.new_empty(x.shape if need_x else (0,)),
        *(x.new_empty(shape if need else (0,), dtype=dtype) for shape, need in parameters),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad1, grad2):
    needs = ctx.needs_input_grad
    asked = (needs[0], needs[1] or needs[2], needs[3] or needs[4])
    grads = torch.ops.hybrid.downsample_pair_backward(grad1, grad2, *ctx.saved_tensors, *asked)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _flops(x, *_, **__):
    B, H, W, C = x.shape
    return sum(2 * side**2 * B * (-(-H // s)) * (-(-W // s)) * C for side, s in SCALES)


def _flops_backward(
    grad1, grad2, x, weight3, weight5, scale, shift, need_x, need_weights, need_affine, **_
):
    return ((need_x or need_affine) + need_weights) * _flops(x)


def _check(x, weight3, weight5, scale, shift):
    op = "downsample_pair"
    require_map(op, "x", x)
    require_pixels(op, x)
    C = x.shape[3]
    require_parameter(op, "weight3", weight3, (3, 3, C), "(3, 3, C)", x)
    require_parameter(op, "weight5", weight5, (5, 5, C), "(5, 5, C)", x)
    require_affine(op, scale, shift, C, x)


def _check_backward(
    grad1, grad2, x, weight3, weight5, scale, shift, need_x, need_weights, need_affine
):
    _check(x, weight3, weight5, scale, shift)
    op = "downsample_pair_backward"
    for name, grad, size in zip(("grad1", "grad2"), (grad1, grad2), _sizes(x), strict=True):
        require_like(op, name, grad, size, "(B, H', W', C)", x)
    require(not need_affine or scale is not None, f"{op}: need_affine is true but scale is None")


register(
    "downsample_pair",
    module="downsample_pair",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x",),
    flops=_flops,
)
register(
    "downsample_pair_backward",
    module="downsample_pair",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
