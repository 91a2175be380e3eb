"""Strip convolution: the coordinate convolutions of EMSNet's static branch, thesis Sec. 3.3."""

import torch
from torch import Tensor

from python_ref.ops.depthwise import depthwise, depthwise_backward_weight
from python_ref.ops.precision import statistics_dtype


def strip_dwconv(x: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Depthwise 1 x k, then depthwise k x 1, with k // 2 zeros at both ends and no bias.

    Equals, at the border too, one depthwise convolution with the outer product
    vertical[a] * horizontal[b] as its kernel.

    Args:
        x: feature map (B, H, W, C), any floating dtype.
        horizontal, vertical: kernels (k, C), odd k.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, horizontal, vertical)
    return depthwise(depthwise(x, horizontal[None]), vertical[:, None])


def strip_dwconv_backward(
    grad: Tensor,
    x: Tensor,
    horizontal: Tensor,
    vertical: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `strip_dwconv`: dx is the same with both kernels reversed.

    With G[a, b] the gradient of the outer-product kernel: dhorizontal[b] = sum_a vertical[a]
    G[a, b] and dvertical[a] = sum_b horizontal[b] G[a, b]. Computed in float32 (float64).

    Args:
        grad: gradient of the output, (B, H, W, C).
        x, horizontal, vertical: as in the forward.
        need_x, need_weight: which gradients to compute; need_weight stands for both kernels.

    Returns:
        (dx in x's dtype, dhorizontal, dvertical); what is not needed has shape (0,).
    """
    _check(x, horizontal, vertical)
    wide = statistics_dtype(x)
    grad, horizontal, vertical = (t.to(wide) for t in (grad, horizontal, vertical))
    none = x.new_empty(0, dtype=wide)
    grad_x, grad_horizontal, grad_vertical = none.to(x.dtype), none, none
    if need_x:
        grad_x = strip_dwconv(grad, horizontal.flip(0), vertical.flip(0)).to(x.dtype)
    if need_weight:
        outer = depthwise_backward_weight(grad, x.to(wide), horizontal.shape[0])
        grad_horizontal = torch.einsum("ac,abc->bc", vertical, outer)
        grad_vertical = torch.einsum("bc,abc->ac", horizontal, outer)
    return grad_x, grad_horizontal, grad_vertical


def _check(x: Tensor, horizontal: Tensor, vertical: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C), got shape {tuple(x.shape)}")
    expected = (horizontal.shape[0], x.shape[3])
    for name, kernel in (("horizontal", horizontal), ("vertical", vertical)):
        if tuple(kernel.shape) != expected or not expected[0] % 2:
            raise ValueError(
                f"{name} must be (k, C) with one odd k for both strips and C = {x.shape[3]}, got "
                f"{tuple(kernel.shape)}"
            )
