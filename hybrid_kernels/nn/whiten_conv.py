"""EMSNet's whitening: the library's 1x1, then a depthwise convolution of what has no mean."""

import torch.nn.functional as F
from torch import Tensor

from python_ref.ops import whiten_conv as reference_whiten

from ..ops import centred_dwconv


def whiten_conv(
    x: Tensor, weight: Tensor, dw_weight: Tensor | None, axis: str = "spatial"
) -> Tensor:
    """`python_ref.ops.whiten_conv` in two steps: a matrix product, and `centred_dwconv` of it.

    The centred map is never stored. The mean over channels (axis "channel") and whitening without
    a convolution (dw_weight None), which no published model has, are the reference's.

    Args:
        x: feature map (B, H, W, C).
        weight: (C', C).
        dw_weight: kernels (3, 3, C'), or None.
        axis: of the mean, "spatial" or "channel".

    Returns:
        (B, H, W, C').
    """
    if axis != "spatial" or dw_weight is None:
        return reference_whiten(x, weight, dw_weight, axis)
    return centred_dwconv(F.linear(x, weight), dw_weight)
