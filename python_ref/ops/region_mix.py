"""Return of the regional tokens to their pixels, and the local mix: MRL Sec. 2.1, steps 4 and 5."""

import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.checks import check_channels, check_map
from python_ref.ops.depthwise import (
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype


def region_mix(x: Tensor, g: Tensor, weight: Tensor, region: int, bias: Tensor | None) -> Tensor:
    """Add to every pixel the token of its region, then convolve depthwise.

    z[i, j] = x[i, j] + g[i // r, j // r], zero outside the map (also where the last region would
    reach further), and y[i, j] = bias + sum_uv weight[u, v] * z[i + u - k // 2, j + v - k // 2].

    Args:
        x: pixels (B, H, W, C), any floating dtype.
        g: regional tokens (B, ceil(H / r), ceil(W / r), C), any floating dtype.
        weight: kernels (k, k, C), k odd.
        region: side r of a region, in pixels.
        bias: (C,) or None.

    Returns:
        y (B, H, W, C) in x's dtype.

    Raises:
        ValueError: shapes do not fit, k is even, or the map has no pixel.
    """
    _check(x, g, weight, region, bias)
    z = region_sum(x, g, region)
    bias = None if bias is None else bias.to(z.dtype)
    return depthwise(z, weight.to(z.dtype), bias).to(x.dtype)


def region_mix_backward(
    grad: Tensor,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    region: int,
    need_x: bool,
    need_g: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `region_mix`; z is computed again.

    dz is the correlation of dy with the flipped kernels; dx = dz, dg = the sum of dz over the
    pixels of the region that exist, dweight[u, v] = sum of dy * z shifted by (u, v), dbias = the
    sum of dy.

    Args:
        grad: gradient dy, (B, H, W, C).
        x, g, weight, region: as in the forward.
        need_x, need_g, need_weight, need_bias: which gradients to compute.

    Returns:
        (dx, dg, dweight, dbias); parameters in float32 (float64); what is not needed has shape
        (0,).
    """
    _check(x, g, weight, region, None)
    wide = statistics_dtype(x)
    grad = grad.to(wide)
    grad_x, grad_g = x.new_empty(0), g.new_empty(0)
    grad_weight = grad_bias = x.new_empty(0, dtype=wide)
    if need_x or need_g:
        grad_z = depthwise_backward_input(grad, weight.to(wide), x.shape[1], x.shape[2])
        grad_x = grad_z.to(x.dtype) if need_x else grad_x
        grad_g = _sums_over_regions(grad_z, g, region) if need_g else grad_g
    if need_weight:
        z = region_sum(x.to(wide), g.to(wide), region)
        grad_weight = depthwise_backward_weight(grad, z, weight.shape[0])
    if need_bias:
        grad_bias = grad.sum(dim=(0, 1, 2))
    return grad_x, grad_g, grad_weight, grad_bias


def region_sum(x: Tensor, g: Tensor, region: int) -> Tensor:
    """x plus the nearest up-sampling of g, cropped to the map.

    Not `interpolate`: from the ratio of ragged sizes it finds other source pixels than i // r.
    """
    upsampled = g.repeat_interleave(region, dim=1).repeat_interleave(region, dim=2)
    return x + upsampled[:, : x.shape[1], : x.shape[2]]


def _sums_over_regions(grad_z: Tensor, g: Tensor, region: int) -> Tensor:
    padded = F.pad(grad_z, (0, 0, 0, -grad_z.shape[2] % region, 0, -grad_z.shape[1] % region))
    return padded.unflatten(2, (-1, region)).unflatten(1, (-1, region)).sum(dim=(2, 4)).to(g.dtype)


def _check(x: Tensor, g: Tensor, weight: Tensor, region: int, bias: Tensor | None) -> None:
    check_map(x)
    if region < 1:
        raise ValueError(f"region must be at least 1, got {region}")
    batch, height, width, channels = x.shape
    expected = (batch, -(-height // region), -(-width // region), channels)
    if tuple(g.shape) != expected:
        raise ValueError(f"g must be {expected}, one token per region, got {tuple(g.shape)}")
    side = weight.shape[0]
    if side % 2 == 0 or tuple(weight.shape) != (side, side, channels):
        raise ValueError(f"weight must be (k, k, {channels}) with k odd, got {tuple(weight.shape)}")
    check_channels(bias, channels, "bias")
