"""Views of one memory: of channels-last maps as NCHW or NHWC, of kernels as operators take them.

Plain permutes, because torch.compile traces an einops call in a third of a second.
"""

from torch import Tensor, nn


def to_nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


def to_stencil(conv: nn.Conv2d) -> Tensor:
    """Depthwise weight (C, 1, k, k) -> (k, k, C), the form that operators take; a view."""
    return conv.weight.squeeze(1).permute(1, 2, 0)
