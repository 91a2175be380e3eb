"""Convolutional attention: windows whose slots are mixed by generated weights."""

import math

import torch
from torch import Tensor

from ._registration import register, require, require_tensor

MAX_KERNEL = 7


def conv_attention(
    v: Tensor,
    logits: Tensor,
    scale: float = 1.0,
    kernel: int = 3,
    stride: int = 2,
    padding: int = 1,
) -> Tensor:
    """Mix the pixels of every window by its own weights, and add windows up where they overlap.

    Window ``(i, j)`` has ``kernel**2`` slots, row-major; slot ``s`` is pixel
    ``(stride*i - padding + s // kernel, stride*j - padding + s % kernel)``. Its output slot ``p``
    is ``sum_q softmax_q(scale * logits[p, q]) * v[pixel of q]``, added to pixel ``p``. Slots
    outside the map have value zero but keep their share of the softmax; overlaps are not averaged.

    Args:
        v: Values ``(B, H, W, C)``, no axis but the batch empty. float32, bfloat16, float16, or
            float64 (CPU); any strides, fastest with a pixel's channels side by side.
        logits: ``(B, H2, W2, h, kernel**2, kernel**2)``, output slot before input slot, in ``v``'s
            dtype, for the ``H2 = (H + 2*padding - kernel) // stride + 1`` rows of windows, ``W2``
            columns alike; head ``n`` has the ``n``-th ``C / h`` channels. Fastest if contiguous.
        scale: Factor of the logits; 1 in EMSNet, ``(C / h)**-0.5`` in VOLO.
        kernel: Window side, 1 to 7.
        stride: Distance of windows >= 1, in pixels.
        padding: Zeros on every side of the map, 0 to ``kernel - 1``.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``v``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: EMSNet ("Efficient Vision Transformers with Multi-Scale and Partial Attentions"), Eq.
        3.9 and 3.10; outlook attention of VOLO ("Vision Outlooker for Visual Recognition").
    """
    return torch.ops.hybrid.conv_attention(v, logits, scale, kernel, stride, padding)


def _fake(v, logits, scale, kernel, stride, padding):
    return v.new_empty(v.shape)


def _fake_backward(grad_out, v, logits, scale, kernel, stride, padding, need_v, need_logits):
    return (
        v.new_empty(v.shape if need_v else (0,)),
        logits.new_empty(logits.shape if need_logits else (0,)),
    )


def _setup_context(ctx, inputs, output):
    v, logits, *ctx.constants = inputs
    ctx.save_for_backward(v, logits)


def _backward(ctx, grad_out):
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.hybrid.conv_attention_backward(
        grad_out, *ctx.saved_tensors, *ctx.constants, *needs
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *[None] * 4


def _flops(v, logits, *_, **__):
    """Slots with slots, for every window and channel; slots outside the map included."""
    return 2 * logits.numel() // logits.shape[3] * v.shape[3]


def _flops_backward(grad_out, v, logits, scale, kernel, stride, padding, need_v, need_logits, **_):
    return (need_v + need_logits) * _flops(v, logits)


def _check(v, logits, scale, kernel, stride, padding):
    op = "conv_attention"
    require(
        v.dim() == 4 and all(size >= 1 for size in v.shape[1:]),
        f"{op}: v has shape {tuple(v.shape)}; expected (B, H, W, C) with H, W and C at least 1",
    )
    require(
        v.is_floating_point(),
        f"{op}: v has {v.dtype}; expected float32, bfloat16, float16 or float64",
    )
    require(1 <= kernel <= MAX_KERNEL, f"{op}: kernel = {kernel}; expected 1 to {MAX_KERNEL}")
    require(stride >= 1, f"{op}: stride = {stride}; expected 1 or more")
    require(
        0 <= padding < kernel,
        f"{op}: padding = {padding}; expected 0 to kernel - 1 = {kernel - 1}",
    )
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    B, H, W, C = v.shape
    require(
        H + 2 * padding >= kernel and W + 2 * padding >= kernel,
        f"{op}: v is a map of {H} x {W} pixels, which with padding {padding} holds no window of "
        f"kernel {kernel}; use more padding",
    )
    grid = ((size + 2 * padding - kernel) // stride + 1 for size in (H, W))
    heads = logits.shape[3] if logits.dim() == 6 else 1
    shape = (B, *grid, heads, kernel**2, kernel**2)
    meaning = "(B, H2, W2, heads, kernel^2, kernel^2)"
    require_tensor(op, "logits", logits, [shape], meaning, v.dtype, ("v", v))
    require(
        heads >= 1 and C % heads == 0,
        f"{op}: logits has {heads} heads; expected a divisor of the {C} channels of v",
    )


def _check_backward(grad_out, v, logits, scale, kernel, stride, padding, need_v, need_logits):
    _check(v, logits, scale, kernel, stride, padding)
    meaning = "(B, H, W, C), as v"
    require_tensor("conv_attention", "grad_out", grad_out, [v.shape], meaning, v.dtype, ("v", v))


register(
    "conv_attention",
    module="conv_attention",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("v", "logits"),
    flops=_flops,
)
register(
    "conv_attention_backward",
    module="conv_attention",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
