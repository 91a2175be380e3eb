"""Window attention as one would write it with the attention functions that PyTorch ships.

Per branch: gather the windows, attend, put them back. What differs is who attends.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from python_ref.ops.atrous_attention import relative_offsets

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def sdpa_formulation(
    qkv: Tensor, bias: Tensor | None, dilations: Sequence[int], window: int, scale: float
) -> Tensor:
    """`scaled_dot_product_attention` with the bias, and -inf for padded keys, as additive mask."""
    offsets = relative_offsets(window, qkv.device)

    def attend(query, key, value, table, inside):
        mask = None
        if table is not None:
            mask = table.to(query.dtype)[offsets].permute(2, 0, 1)  # (h, T, T)
        if inside is not None:
            outside = torch.zeros_like(inside, dtype=query.dtype)
            outside = outside.masked_fill(~inside, torch.finfo(query.dtype).min)[:, None, None, :]
            mask = outside if mask is None else mask + outside  # (windows, h, T, T)
        if mask is not None:
            mask = mask.expand(query.shape[0], -1, -1, -1)  # of stride 0: no copy per window
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    return _by_branch(qkv, bias, dilations, window, attend)


def flex_formulation(
    qkv: Tensor, bias: Tensor | None, dilations: Sequence[int], window: int, scale: float
) -> Tensor:
    """`flex_attention` with the bias and the padding in its score modification; to be compiled."""
    offsets = relative_offsets(window, qkv.device)

    def attend(query, key, value, table, inside):
        def score_mod(score, batch, head, s, t):
            if table is not None:
                score = score + table[offsets[s, t], head]
            if inside is not None:
                # Finite, as a window wholly outside the map must not become 0 / 0.
                score = torch.where(inside[batch, t], score, torch.finfo(torch.float32).min)
            return score

        return flex_attention(query, key, value, score_mod=score_mod, scale=scale)

    return _by_branch(qkv, bias, dilations, window, attend)


def sdpa_with_token(
    qkv: Tensor, token: Tensor, window: int, scale: float, pad_kv: None = None
) -> Tensor:
    """The map that `abstract_token_attention` gives with masked padding."""
    _, height, width, _, _, _ = qkv.shape
    padding = (-height % window, -width % window)
    windows = _gather(qkv, window, 1, padding)
    mask = None
    if any(padding):
        inside = _inside(qkv.shape[:3], window, 1, padding, qkv.device)
        mask = F.pad(inside, (1, 0), value=True)[:, None, None, :]
    query, key, value = (
        torch.cat([row[:, None].expand(len(rows), -1, -1, -1), rows], dim=2)
        for row, rows in zip(token.to(qkv.dtype), windows, strict=True)
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return _scatter(out[:, :, 1:], qkv.shape, window, 1, padding)


def _by_branch(
    qkv: Tensor, bias: Tensor | None, dilations: Sequence[int], window: int, attend: Attend
) -> Tensor:
    _, height, width, _, _, _, _ = qkv.shape
    outs = []
    for k, (branch, dilation) in enumerate(zip(qkv.unbind(3), dilations, strict=True)):
        side = window * dilation
        padding = (-height % side, -width % side)
        inside = None
        if any(padding):
            inside = _inside(qkv.shape[:3], window, dilation, padding, qkv.device)
        query, key, value = _gather(branch, window, dilation, padding)
        table = None if bias is None else bias[k]
        out = attend(query, key, value, table, inside)
        outs.append(_scatter(out, branch.shape, window, dilation, padding))
    return torch.stack(outs, dim=3)


def _gather(
    branch: Tensor, window: int, dilation: int, padding: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, W, 3, h, e) -> query, key, value (B * windows, h, T, e), by one copy."""
    batch, height, width, _, heads, e = branch.shape
    if any(padding):
        branch = F.pad(branch, (0, 0, 0, 0, 0, 0, 0, padding[1], 0, padding[0]))
    u, v = ((n + p) // (window * dilation) for n, p in zip((height, width), padding, strict=True))
    #                      0      1  2       3         4  5       6         7  8      9
    split = branch.reshape(batch, u, window, dilation, v, window, dilation, 3, heads, e)
    parts = split.permute(7, 0, 3, 6, 1, 4, 8, 2, 5, 9)
    parts = parts.reshape(3, batch * dilation**2 * u * v, heads, window * window, e)
    return parts[0], parts[1], parts[2]


def _scatter(
    out: Tensor, shape: torch.Size, window: int, dilation: int, padding: tuple[int, int]
) -> Tensor:
    """(B * windows, h, T, e) -> (B, H, W, h, e), the inverse of `_gather`."""
    batch, height, width, _, heads, e = shape
    rows, columns = height + padding[0], width + padding[1]
    u, v = rows // (window * dilation), columns // (window * dilation)
    #                   0      1         2         3  4  5      6       7       8
    split = out.reshape(batch, dilation, dilation, u, v, heads, window, window, e)
    merged = split.permute(0, 3, 6, 1, 4, 7, 2, 5, 8).reshape(batch, rows, columns, heads, e)
    return merged[:, :height, :width]


@cache
def _inside(
    size: torch.Size, window: int, dilation: int, padding: tuple[int, int], device: torch.device
) -> Tensor:
    """Which slots lie inside the map: (B * windows, T), boolean."""
    ones = torch.ones(*size, 3, 1, 1, device=device)
    return _gather(ones, window, dilation, padding)[0][:, 0, :, 0] > 0
