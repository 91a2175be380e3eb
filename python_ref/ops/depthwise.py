"""Depthwise convolution of maps (B, H, W, C) with kernels (k, k, C), which many ops contain."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | None = None,
) -> Tensor:
    """Convolve every channel with its own kernel.

    Args:
        x: feature map (B, H, W, C), any floating dtype.
        weight: kernels (kh, kw, C); a wider dtype than x's is rounded to it, as is that of bias.
        bias: (C,) or None.
        stride: in pixels.
        padding: zeros on every side; half of the kernel (kh // 2, kw // 2) unless given.

    Returns:
        (B, H', W', C); with odd kernels and half padding, ceil(H / stride) and ceil(W / stride).
    """
    rows, columns, channels = weight.shape
    kernel = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
    bias = None if bias is None else bias.to(x.dtype)
    sides = (rows // 2, columns // 2) if padding is None else padding
    out = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, stride, sides, groups=channels)
    return out.permute(0, 2, 3, 1)


def depthwise_backward_input(
    grad: Tensor, weight: Tensor, height: int, width: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Gradient of x (B, height, width, C) of `depthwise` with half padding, tap by tap.

    Tap (u, v) of output (i, j) reads pixel (stride * i + dilation * (u - kh // 2), stride * j +
    dilation * (v - kw // 2)), and gives it grad[i, j] * weight[u, v].
    """
    (rows, columns, channels), batch = weight.shape, grad.shape[0]
    top, left = rows // 2 * dilation, columns // 2 * dilation
    padded = grad.new_zeros(batch, height + 2 * top, width + 2 * left, channels)
    for u in range(rows):
        for v in range(columns):
            padded[_tap(u * dilation, v * dilation, grad, stride)] += grad * weight[u, v]
    return padded[:, top : top + height, left : left + width]


def depthwise_backward_weight(
    grad: Tensor, x: Tensor, side: int | tuple[int, int], stride: int = 1, dilation: int = 1
) -> Tensor:
    """Gradient of weight of `depthwise` with half padding, tap by tap.

    Args:
        grad: gradient of the output (B, H', W', C).
        x: input (B, H, W, C).
        side: of the kernel, or (kh, kw).
        stride, dilation: of the taps.

    Returns:
        (kh, kw, C): for tap (u, v) the sum over images and outputs of grad times the pixel there.
    """
    rows, columns = (side, side) if isinstance(side, int) else side
    top, left = rows // 2 * dilation, columns // 2 * dilation
    padded = F.pad(x, (0, 0, left, left, top, top))

    def tap(u: int, v: int) -> Tensor:
        seen = padded[_tap(u * dilation, v * dilation, grad, stride)]
        return (grad * seen).sum(dim=(0, 1, 2))

    return torch.stack([torch.stack([tap(u, v) for v in range(columns)]) for u in range(rows)])


def check_depthwise(x: Tensor, weight: Tensor, side: int, name: str = "weight") -> None:
    """Refuse a map that is not (B, H, W, C) and kernels that are not (side, side, C)."""
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C), got shape {tuple(x.shape)}")
    expected = (side, side, x.shape[3])
    if tuple(weight.shape) != expected:
        raise ValueError(f"{name} must be (k, k, C) = {expected}, got {tuple(weight.shape)}")


def _tap(u: int, v: int, out: Tensor, stride: int) -> tuple[slice, slice, slice]:
    """Pixels of the padded map (u, v) beyond the first one of all outputs."""
    rows, columns = (stride * (size - 1) + 1 for size in out.shape[1:3])
    return slice(None), slice(u, u + rows, stride), slice(v, v + columns, stride)
