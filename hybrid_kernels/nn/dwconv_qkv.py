"""Depthwise projections to queries, keys and values: those of one stride read the map together."""

import torch
from torch import Tensor

from python_ref.ops import dwconv_qkv as reference_qkv

from ..ops import atrous_dwconv, dwconv_act


def dwconv_qkv(
    x: Tensor,
    wq: Tensor | None,
    wk: Tensor,
    wv: Tensor,
    affine_q: Tensor | None,
    affine_k: Tensor | None,
    affine_v: Tensor | None,
    stride_q: int,
    stride_kv: int,
    cls: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`python_ref.ops.dwconv_qkv` on the depthwise stencils that have kernels.

    Projections of one stride are branches of one convolution, which reads the map once and gives
    it one gradient. A folded norm scales the kernels; where the stride is 1, the convolution adds
    its shift, too. Strides above 2, which no published model has, are the reference's.

    Args:
        x: map (B, H, W, C).
        wq, wk, wv: kernels (3, 3, C); without wq the queries are x itself.
        affine_q, affine_k, affine_v: scale and shift (2, C), or None.
        stride_q, stride_kv: of the convolutions.
        cls: class token (B, 1, C), token 0 of all three, or None.

    Returns:
        q, k, v, each (B, L, C).
    """
    strides = stride_q, stride_kv
    if max(strides) > 2:
        return reference_qkv(x, wq, wk, wv, affine_q, affine_k, affine_v, stride_q, stride_kv, cls)
    keys = (wk, affine_k), (wv, affine_v)
    if wq is None:
        maps = [_shifted(x, affine_q), *_project(x, keys, stride_kv)]
    elif stride_q == stride_kv:
        maps = _project(x, ((wq, affine_q), *keys), stride_q)
    else:
        maps = _project(x, ((wq, affine_q),), stride_q) + _project(x, keys, stride_kv)
    rows = [y.flatten(1, 2) for y in maps]
    return tuple(rows if cls is None else (torch.cat([cls, row], dim=1) for row in rows))


def _project(
    x: Tensor, branches: tuple[tuple[Tensor, Tensor | None], ...], stride: int
) -> list[Tensor]:
    """The convolutions (kernel, affine) of x, all of one stride."""
    kernels = [w if affine is None else w * affine[0] for w, affine in branches]
    shifts = [None if affine is None else affine[1] for _, affine in branches]
    if stride == 1 and (len(branches) == 1 or any(shift is not None for shift in shifts)):
        return [dwconv_act(x, w, shift) for w, shift in zip(kernels, shifts, strict=True)]
    maps = atrous_dwconv(
        x, torch.stack([w.permute(2, 0, 1) for w in kernels]), [1] * len(kernels), stride
    )
    return [
        y if shift is None else y + shift.to(y.dtype) for y, shift in zip(maps, shifts, strict=True)
    ]


def _shifted(x: Tensor, affine: Tensor | None) -> Tensor:
    return x if affine is None else affine[0] * x + affine[1]
