"""Depthwise convolutions of one map to queries, keys and values: CvT's projection, MRL App. A.2."""

import torch
from torch import Tensor

from python_ref.ops.checks import check_map
from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype


def dwconv_qkv(
    x: Tensor,
    wq: Tensor | None,
    wk: Tensor,
    wv: Tensor,
    affine_q: Tensor | None,
    affine_k: Tensor | None,
    affine_v: Tensor | None,
    stride_q: int,
    stride_kv: int,
    cls: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Three depthwise 3x3 convolutions of a map, each as a row of tokens.

    y_t = affine_t[0] * conv(x, w_t) + affine_t[1] for t in q, k, v, with zero padding 1.

    Args:
        x: map (B, H, W, C), any floating dtype.
        wq, wk, wv: kernels (3, 3, C); without wq the queries are x itself.
        affine_q, affine_k, affine_v: scale and shift (2, C), a folded BatchNorm, or None.
        stride_q, stride_kv: of the convolutions; stride_q is 1 without wq.
        cls: class token (B, 1, C) that bypasses convolutions and affines and becomes token 0 of
            all three, or None.

    Returns:
        q, k, v, each (B, L, C) with L = H' * W' (+ 1 with cls) and H' = (H - 1) // stride + 1.

    Raises:
        ValueError: shapes or strides do not fit.
    """
    _check(x, (wq, wk, wv), (affine_q, affine_k, affine_v), stride_q, stride_kv, cls)
    tokens = []
    for weight, affine, stride in (
        (wq, affine_q, stride_q),
        (wk, affine_k, stride_kv),
        (wv, affine_v, stride_kv),
    ):
        y = x if weight is None else depthwise(x, weight, stride=stride)
        if affine is not None:
            y = affine[0] * y + affine[1]
        y = y.flatten(1, 2)
        tokens.append(y if cls is None else torch.cat([cls, y], dim=1))
    return tuple(tokens)


def dwconv_qkv_backward(
    grads: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    wq: Tensor | None,
    wk: Tensor,
    wv: Tensor,
    affine_q: Tensor | None,
    affine_k: Tensor | None,
    affine_v: Tensor | None,
    stride_q: int,
    stride_kv: int,
    cls: Tensor | None,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Gradients of `dwconv_qkv`: what the three convolutions give back adds up in x and in cls.

    With dc_t = affine_t[0] * dy_t: dx = sum_t conv_t^T(dc_t), dw_t = the taps of x times dc_t,
    daffine_t = (sum dy_t * conv(x, w_t), sum dy_t), dcls = the sum of the three gradients of token
    0. Computed in float32 (float64 for float64) whatever the data's dtype.

    Args:
        grads: gradients of q, k and v, each (B, L, C).
        x .. cls: as in the forward.

    Returns:
        (dx, [dw_t], [daffine_t], dcls); parameters in float32 (float64), and of shape (0,) for a
        kernel, affine or class token that is not there.
    """
    wide = statistics_dtype(x)
    source = x.to(wide)
    grad_x, grad_weights, grad_affines = torch.zeros_like(source), [], []
    for grad, weight, affine, stride in (
        (grads[0], wq, affine_q, stride_q),
        (grads[1], wk, affine_k, stride_kv),
        (grads[2], wv, affine_v, stride_kv),
    ):
        size = [(length - 1) // stride + 1 for length in x.shape[1:3]]
        grad_y = (grad if cls is None else grad[:, 1:]).to(wide).unflatten(1, size)
        parts = _projection_backward(grad_y, source, weight, affine, stride)
        grad_x += parts[0]
        grad_weights.append(parts[1])
        grad_affines.append(parts[2])
    grad_cls = x.new_empty(0) if cls is None else sum(g[:, :1].to(wide) for g in grads).to(x.dtype)
    return grad_x.to(x.dtype), grad_weights, grad_affines, grad_cls


def _projection_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor | None, affine: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What one of the three gives back: (dx, dweight, daffine)."""
    grad_conv = grad_y if affine is None else affine[0].to(x.dtype) * grad_y
    conv, grad_x, grad_weight, grad_affine = x, grad_conv, x.new_empty(0), x.new_empty(0)
    if weight is not None:
        kernel = weight.to(x.dtype)
        conv = depthwise(x, kernel, stride=stride)
        grad_x = depthwise_backward_input(grad_conv, kernel, *x.shape[1:3], stride)
        grad_weight = depthwise_backward_weight(grad_conv, x, 3, stride)
    if affine is not None:
        sums = [(grad_y * conv).sum(dim=(0, 1, 2)), grad_y.sum(dim=(0, 1, 2))]
        grad_affine = torch.stack(sums)
    return grad_x, grad_weight, grad_affine


def _check(
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    affines: tuple[Tensor | None, ...],
    stride_q: int,
    stride_kv: int,
    cls: Tensor | None,
) -> None:
    check_map(x)
    channels = x.shape[3]
    for t, weight, affine in zip("qkv", weights, affines, strict=True):
        if weight is not None:
            check_depthwise(x, weight, 3, f"w{t}")
        if affine is not None and tuple(affine.shape) != (2, channels):
            raise ValueError(f"affine_{t} must be (2, {channels}), got {tuple(affine.shape)}")
    if min(stride_q, stride_kv) < 1 or (weights[0] is None and stride_q != 1):
        raise ValueError(
            "stride_q and stride_kv must be at least 1, and stride_q is 1 without wq, got "
            f"{stride_q} and {stride_kv}"
        )
    if cls is not None and tuple(cls.shape) != (x.shape[0], 1, channels):
        expected = (x.shape[0], 1, channels)
        raise ValueError(f"cls must be (B, 1, C) = {expected}, got {tuple(cls.shape)}")
