"""Maps averaged to one grid and concatenated: MSCSA Sec. 3.1, TopFormer's pyramid pooling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def pool_cat(xs: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Adaptive average pooling of every map to height x width, side by side on channels.

    Row i of the grid averages rows floor(i In / Out) .. ceil((i + 1) In / Out) - 1; neighbouring
    windows overlap when the sizes do not divide, and repeat when the grid is the larger one.

    Args:
        xs: maps (B, H_i, W_i, C_i), any sizes and widths, any floating dtype.
        height, width: size of the grid, at least 1.

    Returns:
        (B, height, width, sum of C_i) in the dtype of the maps.

    Raises:
        ValueError: there is no map, one has another rank or batch, or no pixel, or the grid is
            empty.
    """
    _check(xs, height, width)
    maps = [F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (height, width)) for x in xs]
    return torch.cat(maps, dim=1).permute(0, 2, 3, 1)


def pool_cat_backward(
    grad: Tensor, xs: Sequence[Tensor], height: int, width: int, need_xs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `pool_cat`: every pixel gathers grad / area of the windows that hold it.

    Args:
        grad: gradient of the output.
        xs, height, width: as in the forward.
        need_xs: which gradients to compute, one for each map.

    Returns:
        One gradient for each map, in its dtype; what is not needed has shape (0,).
    """
    _check(xs, height, width)
    wide = statistics_dtype(grad)
    parts = grad.to(wide).split([x.shape[-1] for x in xs], dim=-1)
    return [
        torch.einsum(
            "pi,qj,bpqc->bijc",
            pooling_weights(x.shape[1], height, part),
            pooling_weights(x.shape[2], width, part),
            part,
        ).to(x.dtype)
        if need
        else x.new_empty(0)
        for part, x, need in zip(parts, xs, need_xs, strict=True)
    ]


def pooling_weights(size: int, pooled: int, like: Tensor) -> Tensor:
    """Weight of pixel i in cell p of one axis: (pooled, size), rows sum to 1, dtype of `like`."""
    cell, pixel = torch.arange(pooled, device=like.device), torch.arange(size, device=like.device)
    first, end = cell * size // pooled, -(-(cell + 1) * size // pooled)
    inside = (pixel >= first[:, None]) & (pixel < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None]


def _check(xs: Sequence[Tensor], height: int, width: int) -> None:
    if not xs:
        raise ValueError("xs must hold at least one map, got none")
    for k, x in enumerate(xs):
        if x.ndim != 4 or x.shape[0] != xs[0].shape[0] or 0 in x.shape[1:3]:
            raise ValueError(
                f"xs[{k}] must be (B, H, W, C) with the batch {xs[0].shape[0]} of xs[0] and at "
                f"least one pixel, got {tuple(x.shape)}"
            )
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
