"""Gated fusion: parallel branches mixed by weights that each pixel and channel chooses itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._maps import parameter_dtype, require_map, widened
from ._registration import register, require, require_tensor

MAX_BRANCHES = 8


def gated_fuse(
    x: Tensor,
    m: Sequence[Tensor] | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None = None,
    residual: bool = True,
) -> Tensor:
    """Mix ``n`` branches: ``y = [x +] sum_k softmax_k(weight_k * x + bias_k) * scale_k * m_k``.

    The softmax runs over the branches, for every pixel and channel. Without ``weight`` and
    ``bias`` the branches are averaged; a single branch has gate 1.

    Args:
        x: ``(B, H, W, C)``, the gate's input. float32, bfloat16, float16, or float64 (CPU); any
            strides, fastest with the channels side by side.
        m: 1 to 8 branches, each like ``x``; or all of them as one ``(B, H, W, n, C)``.
        weight, bias: ``(n, C)``, or both ``None``. float32 (float64 beside float64); 16-bit ones
            are converted.
        scale: Factor of every branch, ``(B, n, C)`` (squeeze-excitation) or ``(B, n, 1)`` (drop
            path), in the dtype of ``weight``; or ``None``.
        residual: Add ``x``.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype. Under autocast ``x`` and ``m`` may differ in
        dtype and the widest of them is computed in and returned, so that a float32 residual
        stream stays float32; outside autocast a difference is an error.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: ACC-ViT ("Fusion of regional and sparse attention in Vision Transformers"), Eq. 2.
    """
    branches = list(m.unbind(3)) if isinstance(m, Tensor) else list(m)
    weight, bias, scale = (widened(parameter) for parameter in (weight, bias, scale))
    return torch.ops.hybrid.gated_fuse(x, branches, weight, bias, scale, residual)


def _fake(x, m, weight, bias, scale, residual):
    return x.new_empty(x.shape)


def _fake_backward(
    grad, x, m, weight, bias, scale, residual, need_x, need_m, need_gate, need_scale
):
    dtype = parameter_dtype(x)
    grad_x = x.new_empty(x.shape if need_x else (0,))
    grad_m = [x.new_empty(x.shape if need else (0,)) for need in need_m]
    gate_shape = (len(m), x.shape[3]) if need_gate else (0,)
    grad_weight, grad_bias = (x.new_empty(gate_shape, dtype=dtype) for _ in range(2))
    grad_scale = x.new_empty(scale.shape if need_scale else (0,), dtype=dtype)
    return grad_x, grad_m, grad_weight, grad_bias, grad_scale


def _setup_context(ctx, inputs, output):
    x, m, weight, bias, scale, ctx.residual = inputs
    ctx.save_for_backward(x, weight, bias, scale, *m)


def _backward(ctx, grad):
    x, weight, bias, scale, *m = ctx.saved_tensors
    need_x, need_m, need_weight, need_bias, need_scale, _ = ctx.needs_input_grad
    grad_x, grad_m, grad_weight, grad_bias, grad_scale = torch.ops.hybrid.gated_fuse_backward(
        grad,
        x,
        m,
        weight,
        bias,
        scale,
        ctx.residual,
        need_x,
        need_m,
        need_weight or need_bias,
        need_scale,
    )
    return (
        grad_x if need_x else None,
        [g if need else None for g, need in zip(grad_m, need_m, strict=True)],
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        grad_scale if need_scale else None,
        None,
    )


def _flops(x, m, weight, bias, scale, residual, **_):
    """The gate's logits, as the depthwise 1x1 convolution that they are; mixing is elementwise."""
    is_gated = weight is not None and len(m) > 1
    return 2 * len(m) * x.numel() if is_gated else 0


def _flops_backward(grad, x, m, weight, bias, scale, residual, *_, **__):
    return 2 * _flops(x, m, weight, bias, scale, residual)


def _check(x, m, weight, bias, scale, residual):
    op, n = "gated_fuse", len(m)
    require_map(op, "x", x)
    require(1 <= n <= MAX_BRANCHES, f"{op}: m has {n} branches; expected 1 to {MAX_BRANCHES}")
    for k, branch in enumerate(m):
        _check_tensor(f"m[{k}]", branch, x, [x.shape], "(B, H, W, C), as x", x.dtype)
    require(
        (weight is None) == (bias is None),
        f"{op}: {'weight' if weight is None else 'bias'} is None; give both weight and bias, or "
        "neither for the mean of the branches",
    )
    dtype = parameter_dtype(x)
    B, C = x.shape[0], x.shape[3]
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check_tensor(name, parameter, x, [(n, C)], "(branches, C)", dtype)
    if scale is not None:
        meaning = "(B, branches, C) or (B, branches, 1)"
        _check_tensor("scale", scale, x, [(B, n, C), (B, n, 1)], meaning, dtype)


def _check_tensor(name, tensor, x, shapes, meaning, dtype):
    require_tensor("gated_fuse", name, tensor, shapes, meaning, dtype, ("x", x))


def _check_backward(
    grad, x, m, weight, bias, scale, residual, need_x, need_m, need_gate, need_scale
):
    _check(x, m, weight, bias, scale, residual)
    _check_tensor("grad", grad, x, [x.shape], "(B, H, W, C), as x", x.dtype)
    op = "gated_fuse_backward"
    require(
        len(need_m) == len(m),
        f"{op}: need_m has {len(need_m)} entries; expected one for each of the {len(m)} branches",
    )
    require(not need_gate or weight is not None, f"{op}: need_gate is true but weight is None")
    require(not need_scale or scale is not None, f"{op}: need_scale is true but scale is None")


register(
    "gated_fuse",
    module="gated_fuse",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast_widest=("x", "m"),
    flops=_flops,
)
register(
    "gated_fuse_backward",
    module="gated_fuse",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
