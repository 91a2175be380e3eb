"""Whitening: the first step of EMSNet's static branch, thesis Sec. 3.3, Eq. 3.1 and 3.12."""

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype

AXES = {"spatial": (1, 2), "channel": (3,)}


def whiten_conv(
    x: Tensor, weight: Tensor, dw_weight: Tensor | None, axis: str = "spatial"
) -> Tensor:
    """Mix channels, remove the mean, and convolve depthwise what is left.

    With u = weight x: y = dw(u - mean(u)), the mean over all pixels, per image and channel. Outside
    the map the convolution sees zeros, not the negative mean. A bias would cancel, hence there is
    none. The mean is linear: u - mean(u) = weight (x - mean(x)).

    Args:
        x: feature map (B, H, W, C), any floating dtype, any strides.
        weight: (C', C).
        dw_weight: kernels (3, 3, C'), or None to return u - mean(u) itself.
        axis: "spatial", or "channel" for the mean over C' of every pixel, as the sentence under
            Eq. 3.1 literally reads; Eq. 3.12 and Sec. 3.7.1 have the spatial one.

    Returns:
        y (B, H, W, C') in x's dtype.

    Raises:
        ValueError: shapes do not fit, or axis is unknown.
    """
    _check(x, weight, dw_weight, axis)
    whitened = _centred(F.linear(x, weight), axis)
    return whitened if dw_weight is None else depthwise(whitened, dw_weight)


def whiten_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    dw_weight: Tensor | None,
    axis: str,
    need_x: bool,
    need_weight: bool,
    need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `whiten_conv`: du = dw^T(grad) - mean(dw^T(grad)), then those of the 1x1.

    Computed in float32 (float64 for float64); the whitened map is computed again.

    Args:
        grad: gradient of y, (B, H, W, C').
        x, weight, dw_weight, axis: as in the forward.
        need_x, need_weight, need_dw: which gradients to compute.

    Returns:
        (dx in x's dtype, dweight, ddw); what is not needed has shape (0,).
    """
    _check(x, weight, dw_weight, axis)
    dtype, wide = x.dtype, statistics_dtype(x)
    grad, x, weight = (t.to(wide) for t in (grad, x, weight))
    grad_dw = grad_weight = grad_x = x.new_empty(0)
    if dw_weight is not None:
        if need_dw:
            grad_dw = depthwise_backward_weight(grad, _centred(F.linear(x, weight), axis), 3)
        grad = depthwise_backward_input(grad, dw_weight.to(wide), *x.shape[1:3])
    grad = _centred(grad, axis)
    if need_weight:
        grad_weight = torch.einsum("bhwd,bhwc->dc", grad, x)
    if need_x:
        grad_x = grad @ weight
    return grad_x.to(dtype), grad_weight, grad_dw


def _centred(u: Tensor, axis: str) -> Tensor:
    """u minus its mean, which is taken in float32 (float64)."""
    mean = u.mean(dim=AXES[axis], keepdim=True, dtype=statistics_dtype(u))
    return u - mean.to(u.dtype)


def _check(x: Tensor, weight: Tensor, dw_weight: Tensor | None, axis: str) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (B, H, W, C) with H, W, C > 0, got shape {tuple(x.shape)}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[3]:
        raise ValueError(f"weight must be (C', C) with C = {x.shape[3]}, got {tuple(weight.shape)}")
    if axis not in AXES:
        raise ValueError(f"axis must be 'spatial' or 'channel', got {axis!r}")
    if dw_weight is not None:
        check_depthwise(x[..., :1].expand(-1, -1, -1, weight.shape[0]), dw_weight, 3, "dw_weight")
