"""Depthwise 3x3 convolutions of one map at several dilations, ACC-ViT Sec. 2.4."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


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
    expected = (len(dilations), x.shape[-1], 3, 3)
    if tuple(weight.shape) != expected:
        raise ValueError(f"weight must be (n, C, 3, 3) = {expected}, got {tuple(weight.shape)}")
    nchw = x.permute(0, 3, 1, 2)
    maps = [
        F.conv2d(nchw, kernel.unsqueeze(1), None, stride, dilation, dilation, x.shape[-1])
        for kernel, dilation in zip(weight.unbind(), dilations, strict=True)
    ]
    return [y.permute(0, 2, 3, 1) for y in maps]
