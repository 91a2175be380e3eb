"""Maps side by side, some of which are still tokens: what `propagate_conv` convolves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype
from python_ref.ops.propagate_conv import pixels_by_token, propagate


def propagate_cat(
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor],
    is_tokens: Sequence[bool],
    height: int,
    width: int,
) -> Tensor:
    """Full-size maps, and tokens spread by `propagate`, side by side on channels.

    Args:
        maps: maps (B, H, W, C_i), or tokens (B, h_i, w_i, C_i); any floating dtype, any strides.
        kernels: (p_i, p_i, C_i) for every map of tokens, in their order.
        is_tokens: which maps those are.
        height, width: H and W.

    Returns:
        y (B, H, W, sum of the C_i).

    Raises:
        ValueError: shapes do not fit.
    """
    parts = [
        z if kernel is None else propagate(z, kernel.to(z.dtype), height, width)
        for z, kernel in zip(maps, _by_map(kernels, is_tokens), strict=True)
    ]
    return torch.cat(parts, dim=-1)


def propagate_cat_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor],
    is_tokens: Sequence[bool],
    height: int,
    width: int,
    need_maps: Sequence[bool],
    need_kernels: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of `propagate_cat`, in float32 (float64 for float64).

    dz of a token is the sum of grad * kernel over its p x p pixels that the map has; dkernel[a, b]
    the sum of grad * z over images and tokens, at their pixels (a, b).

    Args:
        grad: gradient of y.
        maps, kernels, is_tokens, height, width: as in the forward.
        need_maps, need_kernels: which gradients to compute, one entry for each.

    Returns:
        ([dmap_i] in the dtype of theirs, [dkernel_i]); what is not needed has shape (0,).
    """
    wide = statistics_dtype(grad)
    none = grad.new_empty(0, dtype=wide)
    grad_maps, grad_kernels = [], []
    parts = grad.to(wide).split([z.shape[3] for z in maps], dim=3)
    for part, z, kernel, need in zip(
        parts, maps, _by_map(kernels, is_tokens), need_maps, strict=True
    ):
        grad_z = part
        if kernel is not None:
            cells = pixels_by_token(part, z, kernel)
            need_kernel = need_kernels[len(grad_kernels)]
            grad_z = torch.einsum("btasec,aec->btsc", cells, kernel.to(wide))
            grad_kernel = torch.einsum("btasec,btsc->aec", cells, z.to(wide))
            grad_kernels.append(grad_kernel if need_kernel else none)
        grad_maps.append(grad_z.to(z.dtype, copy=True) if need else none.to(z.dtype))
    return grad_maps, grad_kernels


def _by_map(kernels: Sequence[Tensor], is_tokens: Sequence[bool]) -> list[Tensor | None]:
    """The kernel of every map, None of those that are full-size."""
    if len(kernels) != sum(is_tokens):
        raise ValueError(f"kernels must have {sum(is_tokens)} entries, got {len(kernels)}")
    given = iter(kernels)
    return [next(given) if spread else None for spread in is_tokens]
