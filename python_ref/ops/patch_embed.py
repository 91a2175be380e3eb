"""Patch embedding by pooling: PE of EMSNet's branches, thesis Sec. 3.3."""

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.atrous_partition import atrous_merge, atrous_partition
from python_ref.ops.precision import statistics_dtype

KINDS = ("max", "avg")
POOL_MODES = ("ceil", "floor")


def patch_embed(
    x: Tensor, weight: Tensor, patch: int, kind: str, pool_mode: str = "ceil"
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool disjoint patches of p x p pixels, then mix channels: z[t] = weight pool_t(x).

    Patch t covers rows [t p, min((t + 1) p, H)): the last one may be cut by the border, and then
    has fewer pixels; an average divides by those that exist. Of equal maxima the first counts, row
    by row, and NaN is larger than every number.

    Args:
        x: feature map (B, H, W, C), any floating dtype, any strides.
        weight: (C', C).
        patch: side p, at most 16.
        kind: "max" or "avg".
        pool_mode: "ceil" pools the cut patches too, "floor" leaves them out.

    Returns:
        z (B, ceil(H / p), ceil(W / p), C'), rounded down with "floor", and for "max" the pixel
        inside each patch that was largest (B, ceil(H / p), ceil(W / p), C) in uint8, row-major;
        shape (0,) for "avg". Last the pooled map, of that shape in x's dtype: what the backward
        needs of x.

    Raises:
        ValueError: shapes do not fit, a word is unknown, or "floor" leaves no patch.
    """
    _check(x, weight, patch, kind, pool_mode)
    pooled, index = _pool(_whole(x, patch, pool_mode), patch, kind)
    return F.linear(pooled, weight), index, pooled


def patch_embed_out(
    x: Tensor, weight: Tensor, patch: int, kind: str, pool_mode: str = "ceil"
) -> Tensor:
    """`patch_embed` without what its backward needs."""
    return patch_embed(x, weight, patch, kind, pool_mode)[0]


def patch_embed_backward(
    grad: Tensor,
    pooled: Tensor,
    weight: Tensor,
    index: Tensor,
    height: int,
    width: int,
    patch: int,
    kind: str,
    pool_mode: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `patch_embed`; patches are disjoint, so dx is a gather.

    With g = weight^T grad, and t the patch of pixel (y, x): dx is g[t] / (pixels of t) for "avg",
    and g[t] where index[t] names the pixel, else 0, for "max". dweight is the sum of
    grad (x) pooled map over images and patches.

    Args:
        grad: gradient of z, (B, H', W', C').
        pooled, index: what the forward returned.
        height, width: size of x.
        weight, patch, kind, pool_mode: as in the forward.
        need_x, need_weight: which gradients to compute.

    Returns:
        dx in grad's dtype and dweight in float32 (float64); what is not needed has shape (0,).
    """
    wide = statistics_dtype(grad)
    grad_x, grad_weight = grad.new_empty(0), grad.new_empty(0, dtype=wide)
    if need_x:
        ones = _whole(grad.new_ones(1, height, width, 1, dtype=wide), patch, pool_mode)
        tokens = (grad.to(wide) @ weight.to(wide)).flatten(1, 2).unsqueeze(2)
        if kind == "max":
            slots = torch.arange(patch**2, device=grad.device)[:, None]
            share = tokens * (slots == index.flatten(1, 2).unsqueeze(2))
        else:
            share = (tokens / _pixels(ones, patch)).expand(-1, -1, patch**2, -1)
        rows, columns = ones.shape[1:3]
        inner = atrous_merge(share, rows, columns, patch, 1)
        grad_x = F.pad(inner, (0, 0, 0, width - columns, 0, height - rows)).to(grad.dtype)
    if need_weight:
        grad_weight = torch.einsum("bijd,bijc->dc", grad.to(wide), pooled.to(wide))
    return grad_x, grad_weight


def _whole(x: Tensor, patch: int, pool_mode: str) -> Tensor:
    """The part of the map that is pooled."""
    if pool_mode == "ceil":
        return x
    height, width = x.shape[1:3]
    return x[:, : height - height % patch, : width - width % patch]


def _pool(x: Tensor, patch: int, kind: str) -> tuple[Tensor, Tensor]:
    """Pooled map (B, H', W', C) and, for the maximum, the winning pixels (B, H', W', C)."""
    grid = [-(-size // patch) for size in x.shape[1:3]]
    if kind == "max":
        pooled, index = atrous_partition(x, patch, 1, fill=float("-inf")).max(dim=2)
        return pooled.unflatten(1, grid), index.unflatten(1, grid).to(torch.uint8)
    total = atrous_partition(x, patch, 1).sum(dim=2) / _pixels(x, patch).squeeze(2)
    return total.unflatten(1, grid), x.new_empty(0, dtype=torch.uint8)


def _pixels(x: Tensor, patch: int) -> Tensor:
    """Pixels of every patch, (1, patches, 1, 1)."""
    ones = x.new_ones(1, *x.shape[1:3], 1)
    return atrous_partition(ones, patch, 1).sum(dim=2, keepdim=True)


def _check(x: Tensor, weight: Tensor, patch: int, kind: str, pool_mode: str) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (B, H, W, C) with H, W, C > 0, got shape {tuple(x.shape)}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[3]:
        raise ValueError(f"weight must be (C', C) with C = {x.shape[3]}, got {tuple(weight.shape)}")
    if not 1 <= patch <= 16:
        raise ValueError(f"patch must be in 1..16, got {patch}")
    if kind not in KINDS:
        raise ValueError(f"kind must be 'max' or 'avg', got {kind!r}")
    if pool_mode not in POOL_MODES:
        raise ValueError(f"pool_mode must be 'ceil' or 'floor', got {pool_mode!r}")
    if pool_mode == "floor" and min(x.shape[1:3]) < patch:
        raise ValueError(
            f"pool_mode 'floor' needs a map of at least {patch} x {patch}, got {x.shape[1]} x "
            f"{x.shape[2]}; use 'ceil'"
        )
