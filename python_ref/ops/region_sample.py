"""Learned down-sampling of regions to one token each: MRL Sec. 2.1, step 2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.checks import check_channels, check_map
from python_ref.ops.depthwise import depthwise
from python_ref.ops.precision import statistics_dtype


def region_sample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weighted sum over every r x r region, channel by channel.

    s[p, q, c] = bias[c] + sum_uv weight[u, v, c] * x[p * r + u, q * r + v, c], where pixels beyond
    the map count as zero: the last region of a row may be ragged but never empty.

    Args:
        x: map (B, H, W, C), any floating dtype.
        weight: (r, r, C).
        bias: (C,) or None.

    Returns:
        Regional tokens (B, ceil(H / r), ceil(W / r), C) in x's dtype.

    Raises:
        ValueError: shapes do not fit, or the map has no pixel.
    """
    _check(x, weight, bias)
    region = weight.shape[0]
    padded = F.pad(x, (0, 0, 0, -x.shape[2] % region, 0, -x.shape[1] % region))
    return depthwise(padded, weight, bias, stride=region, padding=0)


def region_sample_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    dx_init: Tensor | None,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `region_sample`; every pixel lies in exactly one region, so dx is a gather.

    dx[i, j] = weight[i mod r, j mod r] * ds[i // r, j // r] [+ dx_init[i, j]],
    dweight[u, v] = sum over images and regions of ds * x, dbias = sum ds.

    Args:
        grad: gradient ds of the tokens, (B, H', W', C).
        x, weight: as in the forward.
        dx_init: what another consumer of x adds to its gradient, (B, H, W, C), or None.
        need_x, need_weight, need_bias: which gradients to compute.

    Returns:
        (dx, dweight, dbias); parameters in float32 (float64); what is not needed has shape (0,).
    """
    _check(x, weight, None)
    region, (height, width) = weight.shape[0], x.shape[1:3]
    wide = statistics_dtype(x)
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0, dtype=wide)
    grad_bias = x.new_empty(0, dtype=wide)
    grad = grad.to(wide)
    if need_x:
        rows = torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device)
        taps = weight.to(wide)[rows % region][:, columns % region]
        total = taps * grad[:, rows // region][:, :, columns // region]
        grad_x = (total if dx_init is None else total + dx_init).to(x.dtype)
    if need_weight:
        padded = F.pad(x.to(wide), (0, 0, 0, -width % region, 0, -height % region))
        blocks = padded.unflatten(2, (-1, region)).unflatten(1, (-1, region))
        grad_weight = torch.einsum("bpqc,bpuqvc->uvc", grad, blocks)
    if need_bias:
        grad_bias = grad.sum(dim=(0, 1, 2))
    return grad_x, grad_weight, grad_bias


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_map(x)
    region = weight.shape[0]
    if region < 1 or tuple(weight.shape) != (region, region, x.shape[3]):
        raise ValueError(
            f"weight must be (r, r, {x.shape[3]}) with r >= 1, got {tuple(weight.shape)}"
        )
    check_channels(bias, x.shape[3], "bias")
