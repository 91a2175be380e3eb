"""The two views of one channels-last map: convolutions take NCHW, everything else NHWC.

Plain permutes, because torch.compile traces an einops call in a third of a second.
"""

from torch import Tensor


def to_nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)
