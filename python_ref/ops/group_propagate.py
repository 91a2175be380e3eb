"""Pixels read pooled tokens at two scales, MCGA Sec. 3.2, Eq. 2.

The queries are depthwise convolutions of the map, 3x3 and 5x5, used as they are.
"""

import torch
from torch import Tensor

from python_ref.ops.checks import check_channels, check_map
from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.token_fusion import token_fusion, token_fusion_backward


def group_propagate(
    x: Tensor,
    w3: Tensor,
    b3: Tensor,
    w5: Tensor,
    b5: Tensor,
    kv3: Tensor,
    kv5: Tensor,
    scale: float,
) -> Tensor:
    """Sum of two cross-attentions from every pixel to G tokens of its image.

    y = attention(DW3x3(x), kv3) + attention(DW5x5(x), kv5), where head by head
    attention(q, kv)_i = sum_g softmax_g(scale * <q_i, k_g>) v_g.

    Args:
        x: feature map (B, H, W, C), C = h * d, H and W at least 1, any floating dtype.
        w3, b3: depthwise kernels (3, 3, C) and biases (C,).
        w5, b5: depthwise kernels (5, 5, C) and biases (C,).
        kv3, kv5: keys and values of the tokens, (B, G, 2, h, d) each.
        scale: factor of the scores, usually d**-0.5.

    Returns:
        y (B, H, W, C) in x's dtype.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, w3, b3, w5, b5, kv3, kv5)
    out = torch.zeros_like(x).flatten(1, 2).unflatten(-1, kv3.shape[3:])
    for weight, bias, kv in ((w3, b3, kv3), (w5, b5, kv5)):
        out = token_fusion(_queries(x, weight, bias, kv), kv, out, scale)
    return out.reshape(x.shape)


def group_propagate_backward(
    grad: Tensor,
    x: Tensor,
    w3: Tensor,
    b3: Tensor,
    w5: Tensor,
    b5: Tensor,
    kv3: Tensor,
    kv5: Tensor,
    scale: float,
    need_x: bool,
    need_conv: bool,
    need_kv: bool,
) -> tuple[Tensor, ...]:
    """Gradients of `group_propagate`; queries and weights p are computed again.

    Per branch, with dp = <dy, v> and ds = p * (dp - sum_g p dp): dq = scale * ds k,
    dk = scale * ds^T q, dv = p^T dy, and dq goes through the depthwise convolution:
    dx = DW3^T(dq3) + DW5^T(dq5), dw the correlation of dq with x, db the sum of dq.

    Args:
        grad: gradient of y, (B, H, W, C).
        x, w3, b3, w5, b5, kv3, kv5, scale: as in the forward.
        need_x, need_conv, need_kv: which gradients to compute; need_conv is for kernels and
            biases, need_kv for both pairs of keys and values.

    Returns:
        (dx, dw3, db3, dw5, db5, dkv3, dkv5) in the dtypes of the inputs; what is not needed has
        shape (0,).
    """
    _check(x, w3, b3, w5, b5, kv3, kv5)
    height, width, none = *x.shape[1:3], x.new_empty(0)
    grad_x, grad_conv, grad_kv = torch.zeros_like(x), [], []
    for weight, bias, kv in ((w3, b3, kv3), (w5, b5, kv5)):
        query = _queries(x, weight, bias, kv)
        need_query = need_x or need_conv
        dy = grad.reshape(query.shape)
        dq, dkv = token_fusion_backward(dy, query, kv, scale, need_query, need_kv)
        grad_kv.append(dkv)
        if need_query:
            dq = dq.reshape(x.shape)
        if need_x:
            grad_x = grad_x + depthwise_backward_input(dq, weight, height, width)
        if need_conv:
            dw = depthwise_backward_weight(dq, x, weight.shape[0])
            grad_conv += [dw, dq.sum(dim=(0, 1, 2))]
    return (grad_x if need_x else none, *(grad_conv or 4 * [none]), *grad_kv)


def _queries(x: Tensor, weight: Tensor, bias: Tensor, kv: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H * W, h, d)."""
    return depthwise(x, weight, bias).flatten(1, 2).unflatten(-1, kv.shape[3:])


def _check(
    x: Tensor, w3: Tensor, b3: Tensor, w5: Tensor, b5: Tensor, kv3: Tensor, kv5: Tensor
) -> None:
    check_map(x)
    batch, channels = x.shape[0], x.shape[3]
    for side, weight, bias in ((3, w3, b3), (5, w5, b5)):
        check_depthwise(x, weight, side, f"w{side}")
        check_channels(bias, channels, f"b{side}")
    if kv3.shape != kv5.shape:
        raise ValueError(f"kv5 must be {tuple(kv3.shape)} like kv3, got {tuple(kv5.shape)}")
    fits = kv3.ndim == 5 and kv3.shape[0] == batch and kv3.shape[2] == 2
    if not fits or kv3.shape[3] * kv3.shape[4] != channels:
        raise ValueError(
            f"kv3 must be (B, G, 2, h, d) with B = {batch} and h * d = {channels}, got "
            f"{tuple(kv3.shape)}"
        )
