"""Depthwise 3x3 convolutions of one map at several dilations, ACC-ViT Sec. 2.4."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.depthwise import depthwise_backward_input, depthwise_backward_weight
from python_ref.ops.precision import statistics_dtype


def atrous_dwconv(x: Tensor, weight: Tensor, dilations: Sequence[int], stride: int) -> list[Tensor]:
    """Convolve every channel with its own 3x3 kernel, once for each dilation.

    Zero padding as wide as the dilation, no bias: all branches have the same size.

    Args:
        x: feature map (B, H, W, C), any floating dtype.
        weight: kernels (n, C, 3, 3).
        dilations: dilation of each of the n branches, in pixels.
        stride: 1 or 2.

    Returns:
        n maps (B, ceil(H / stride), ceil(W / stride), C).

    Raises:
        ValueError: weight or dilations do not fit.
    """
    _check(x, weight, dilations)
    nchw, weight = x.permute(0, 3, 1, 2), weight.to(x.dtype)
    maps = [
        F.conv2d(nchw, kernel.unsqueeze(1), None, stride, dilation, dilation, x.shape[-1])
        for kernel, dilation in zip(weight.unbind(), dilations, strict=True)
    ]
    return [y.permute(0, 2, 3, 1).contiguous() for y in maps]


def atrous_dwconv_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    weight: Tensor,
    dilations: Sequence[int],
    stride: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `atrous_dwconv`, in float32 (float64 for float64).

    dx is the sum of the branches' transposed stencils; dweight_k[u, v] is the sum over images and
    outputs of grads[k] times the pixel under the tap.

    Returns:
        (dx, dweight); what is not needed has shape (0,).
    """
    _check(x, weight, dilations)
    wide = statistics_dtype(x)
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0, dtype=wide)
    branches = [(grad.to(wide), d) for grad, d in zip(grads, dilations, strict=True)]
    if need_x:
        parts = [
            depthwise_backward_input(
                grad, kernel.to(wide).permute(1, 2, 0), *x.shape[1:3], stride, dilation
            )
            for (grad, dilation), kernel in zip(branches, weight.unbind(), strict=True)
        ]
        grad_x = sum(parts).to(x.dtype).contiguous()
    if need_weight:
        kernels = [
            depthwise_backward_weight(grad, x.to(wide), 3, stride, dilation)
            for grad, dilation in branches
        ]
        grad_weight = torch.stack(kernels).permute(0, 3, 1, 2).contiguous()
    return grad_x, grad_weight


def _check(x: Tensor, weight: Tensor, dilations: Sequence[int]) -> None:
    expected = (len(dilations), x.shape[-1], 3, 3)
    if tuple(weight.shape) != expected:
        raise ValueError(f"weight must be (n, C, 3, 3) = {expected}, got {tuple(weight.shape)}")
