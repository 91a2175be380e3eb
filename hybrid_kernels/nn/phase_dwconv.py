"""Dilated depthwise convolutions whose backward runs on the undilated sub-maps.

oneDNN has no fast backward for a dilated depthwise convolution: it takes ten times as long as the
undilated one. But a convolution with dilation d never mixes pixels of different phase (i mod d,
j mod d): it is an ordinary one on each of the d * d sub-maps. The backward here splits map and
gradient into phases, as atrous attention does, and folds the phases into the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops import atrous_dwconv as reference_dwconv


def atrous_dwconv(
    x: Tensor, weight: Tensor, dilations: Sequence[int], stride: int
) -> Sequence[Tensor]:
    """`python_ref.ops.atrous_dwconv`; on CPU with the backward described above.

    Args:
        x: feature map (B, H, W, C).
        weight: kernels (n, C, 3, 3).
        dilations: dilation of each of the n branches, in pixels.
        stride: 1 or 2.

    Returns:
        n maps (B, ceil(H / stride), ceil(W / stride), C).
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return reference_dwconv(x, weight, dilations, stride)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    return _PhaseDepthwise.apply(x, weight, tuple(dilations), stride)


class _PhaseDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dilations: tuple[int, ...], stride: int):
        ctx.save_for_backward(x, weight)
        ctx.dilations, ctx.stride = dilations, stride
        return tuple(reference_dwconv(x, weight, dilations, stride))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = None, []
        for kernel, dilation, grad in zip(weight, ctx.dilations, grads, strict=True):
            part, grad_kernel = _backward(grad, x, kernel, dilation, ctx.stride)
            grad_x = part if grad_x is None else grad_x.add_(part)
            grad_weight.append(grad_kernel)
        return grad_x, torch.stack(grad_weight), None, None


def _backward(
    grad: Tensor, x: Tensor, kernel: Tensor, dilation: int, stride: int
) -> tuple[Tensor, Tensor]:
    """Gradients of one branch to the map (B, H, W, C) and to the kernel (C, 3, 3)."""
    height, width = x.shape[1:3]
    if dilation == 1:
        return _undilated_backward(grad, x, kernel, stride)
    if stride > 1 and dilation % stride == 0:
        # Every tap falls on a multiple of the stride: a smaller dilation on the sub-sampled map.
        part, grad_kernel = _backward(
            grad, x[:, ::stride, ::stride], kernel, dilation // stride, stride=1
        )
        grad_x = torch.zeros_like(x)
        grad_x[:, ::stride, ::stride] = part
        return grad_x, grad_kernel
    if stride > 1:
        full = grad.new_zeros(grad.shape[0], height, width, grad.shape[3])
        full[:, ::stride, ::stride] = grad
        grad = full
    part, grad_kernel = _undilated_backward(
        _split_phases(grad, dilation), _split_phases(x, dilation), kernel, stride=1
    )
    return _merge_phases(part, dilation)[:, :height, :width], grad_kernel


def _undilated_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        kernel.unsqueeze(1),
        bias_sizes=None,
        stride=[stride, stride],
        padding=[1, 1],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=x.shape[3],
        output_mask=[True, True, False],
    )
    return grad_x.permute(0, 2, 3, 1), grad_kernel.squeeze(1)


def _split_phases(x: Tensor, dilation: int) -> Tensor:
    """(B, H, W, C) -> (B * d * d, ceil(H / d), ceil(W / d), C), zeros beyond the map."""
    batch, height, width, channels = x.shape
    d = dilation
    x = F.pad(x, (0, 0, 0, -width % d, 0, -height % d))
    phases = x.unflatten(2, (-1, d)).unflatten(1, (-1, d)).permute(0, 2, 4, 1, 3, 5)
    return phases.reshape(batch * d * d, -(-height // d), -(-width // d), channels)


def _merge_phases(x: Tensor, dilation: int) -> Tensor:
    """The inverse of `_split_phases`, padding included."""
    d = dilation
    phases = x.unflatten(0, (-1, d, d)).permute(0, 3, 1, 4, 2, 5)
    return phases.reshape(phases.shape[0], x.shape[1] * d, x.shape[2] * d, x.shape[3])
