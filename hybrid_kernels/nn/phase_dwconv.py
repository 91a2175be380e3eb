"""Dilated depthwise convolutions whose backward runs on the undilated sub-maps.

oneDNN has no fast backward for a dilated depthwise convolution: it takes ten times as long as the
undilated one. But a convolution with dilation d never mixes pixels of different phase (i mod d,
j mod d): it is an ordinary one on each of the d * d sub-maps. The backward here splits map and
gradient into phases, as atrous attention does, and folds the phases into the batch.
"""

import itertools
import math
from collections.abc import Sequence

import torch
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
        grad_x, grad_weight = torch.zeros_like(x), torch.empty_like(weight)
        for k, (dilation, grad) in enumerate(zip(ctx.dilations, grads, strict=True)):
            grad_weight[k] = _add_backward(grad_x, grad, x, weight[k], dilation, ctx.stride)
        return grad_x, grad_weight, None, None


def _add_backward(
    grad_x: Tensor, grad: Tensor, x: Tensor, kernel: Tensor, dilation: int, stride: int
) -> Tensor:
    """Add the gradient of one branch to grad_x (B, H, W, C); return its kernel's (C, 3, 3)."""
    common = math.gcd(dilation, stride)
    if common > 1:  # every tap falls on a multiple of it: the same on the sub-sampled map
        grad_x, x = grad_x[:, ::common, ::common], x[:, ::common, ::common]
        dilation, stride = dilation // common, stride // common
    if dilation == 1:
        part, grad_kernel = _undilated_backward(grad, x, kernel, stride)
        grad_x += part
        return grad_kernel
    phases = _Phases(dilation, x.shape[1:3])
    part, grad_kernel = _undilated_backward(
        phases.split(grad, stride), phases.split(x), kernel, stride=1
    )
    phases.add(grad_x, part)
    return grad_kernel


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


class _Phases:
    """Sub-maps of a map (B, H, W, C) as one batch (d * d * B, ceil(H / d), ceil(W / d), C)."""

    def __init__(self, dilation: int, size: Sequence[int]) -> None:
        self.dilation = dilation
        self.height, self.width = (-(-side // dilation) for side in size)

    def split(self, x: Tensor, stride: int = 1) -> Tensor:
        """Sub-maps of the map that holds x at every stride-th pixel and zeros elsewhere.

        With stride and dilation d coprime, phase p holds the rows o of x with stride * o = p
        (mod d): every d-th one from the first, and in the sub-map they lie stride apart.
        """
        d = self.dilation
        phases = x.new_zeros(d, d, x.shape[0], self.height, self.width, x.shape[3])
        first = {stride * o % d: o for o in reversed(range(d))}
        for p, q in itertools.product(range(d), repeat=2):
            rows, columns = stride * first[p] // d, stride * first[q] // d
            source = x[:, first[p] :: d, first[q] :: d]
            target = phases[p, q, :, rows::stride, columns::stride]
            target[:, : source.shape[1], : source.shape[2]] = source
        return phases.flatten(0, 2)

    def add(self, x: Tensor, phases: Tensor) -> None:
        """Add sub-maps to a map in place, without what lies beyond it."""
        d = self.dilation
        phases = phases.unflatten(0, (d, d, -1))
        for p, q in itertools.product(range(d), repeat=2):
            target = x[:, p::d, q::d]
            target += phases[p, q, :, : target.shape[1], : target.shape[2]]
