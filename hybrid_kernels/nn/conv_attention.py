"""C-MHSA of EMSNet around the fused core: what generates logits and values stays with PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.depthwise import depthwise

from ..ops import conv_attention


def conv_attention_fused(
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
    scale: float,
) -> Tensor:
    """`python_ref.ops.conv_attention_fused`, with `hybrid_kernels.conv_attention` inside.

    Args:
        x: feature map (B, H, W, C).
        dw_weight: depthwise kernels (3, 3, C), of stride 2.
        logit_weight: (81 * heads, C), rows (head, output slot, input slot).
        logit_bias: (81 * heads,) or None.
        value_weight: (C, C).
        heads: divides C.
        scale: factor of the logits.

    Returns:
        (B, H, W, C).
    """
    pooled = depthwise(x, dw_weight, stride=2)
    logits = F.linear(pooled, logit_weight, logit_bias).unflatten(-1, (heads, 9, 9))
    return conv_attention(F.linear(x, value_weight), logits, scale)
