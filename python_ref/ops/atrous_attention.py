"""Atrous window attention, ACC-ViT Sec. 2.1 and supplement A.1, branch by branch.

Every branch cuts the map into the windows of its dilated sub-maps and runs multi-head
self-attention with a relative-position bias inside each window. Maps that do not tile are padded
after the linear layer; padded slots are masked as keys and cropped as queries.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from python_ref.ops.atrous_partition import atrous_merge, atrous_partition
from python_ref.ops.precision import statistics_dtype


def atrous_attention(
    qkv: Tensor,
    bias: Tensor | None,
    dilations: Sequence[int],
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Multi-head attention inside the atrous windows of every branch.

    Per branch, window and head, over the slots s, t that lie inside the map:
    out_s = sum_t softmax_t(scale * <q_s, k_t> + bias[r(s, t)]) v_t, where
    r(s, t) = (a_s - a_t + P - 1) * (2P - 1) + (b_s - b_t + P - 1) for slot s = (a_s, b_s).

    Args:
        qkv: queries, keys and values (B, H, W, n, 3, h, e) of n branches and h heads of width e;
            any floating dtype, any strides.
        bias: relative-position table (n, (2P-1)**2, h), query minus key, or None.
        dilations: dilation of each of the n branches, in pixels.
        window: window side P, in slots.
        scale: factor of the scores, usually e**-0.5.

    Returns:
        out (B, H, W, n, h, e) in qkv's dtype, and the log-sum-exp of the scores (B, H, W, n, h) in
        float32 (float64 for float64), natural logarithm.

    Raises:
        ValueError: an argument has the wrong rank, size or sign.
    """
    _check(qkv, bias, dilations, window)
    outs, lses = [], []
    for k, (branch, dilation) in enumerate(zip(qkv.unbind(dim=3), dilations, strict=True)):
        query, key, value = _windows(branch, window, dilation)
        scores = _scores(query, key, _table(bias, k), qkv.shape[1:3], window, dilation, scale)
        out = scores.softmax(dim=-1) @ value
        wide = [t.to(statistics_dtype(qkv)) for t in (query, key)]
        scores = _scores(*wide, _table(bias, k), qkv.shape[1:3], window, dilation, scale)
        lse = scores.logsumexp(dim=-1, keepdim=True)
        outs.append(_to_map(out, qkv.shape[1:3], window, dilation))
        lses.append(_to_map(lse, qkv.shape[1:3], window, dilation).squeeze(-1))
    return torch.stack(outs, dim=3), torch.stack(lses, dim=3)


def atrous_attention_out(
    qkv: Tensor,
    bias: Tensor | None,
    dilations: Sequence[int],
    window: int,
    scale: float,
) -> Tensor:
    """`atrous_attention` without the log-sum-exp, which a plain PyTorch model would not compute."""
    _check(qkv, bias, dilations, window)
    outs = []
    for k, (branch, dilation) in enumerate(zip(qkv.unbind(dim=3), dilations, strict=True)):
        query, key, value = _windows(branch, window, dilation)
        scores = _scores(query, key, _table(bias, k), qkv.shape[1:3], window, dilation, scale)
        outs.append(_to_map(scores.softmax(dim=-1) @ value, qkv.shape[1:3], window, dilation))
    return torch.stack(outs, dim=3)


def atrous_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dilations: Sequence[int],
    window: int,
    scale: float,
    need_qkv: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `atrous_attention` from its outputs: the weights are rebuilt as exp(S - lse).

    With D_s = <dout_s, out_s> and dS = A * (dout v^T - D): dq = scale * dS k, dk = scale * dS^T q,
    dv = A^T dout, and dbias[r] is the sum of dS over batch, windows and the pairs with offset r.
    Computed in float32 (float64 for float64) whatever the data's dtype, as every backend does.

    Args:
        grad_out: gradient of out, (B, H, W, n, h, e).
        qkv, bias, dilations, window, scale: as in the forward.
        out, lse: what the forward returned.
        need_qkv: compute the gradient of qkv.
        need_bias: compute the gradient of bias.

    Returns:
        grad_qkv like qkv and grad_bias like bias; what is not needed has shape (0,).
    """
    _check(qkv, bias, dilations, window)
    size, dtype = qkv.shape[1:3], qkv.dtype
    qkv, grad_out, out = (t.to(statistics_dtype(qkv)) for t in (qkv, grad_out, out))
    grad_qkv, grad_bias = [], []
    for k, dilation in enumerate(dilations):
        query, key, value = _windows(qkv[:, :, :, k], window, dilation)
        grad = _heads(grad_out[:, :, :, k], window, dilation)
        scores = _scores(query, key, _table(bias, k), size, window, dilation, scale)
        # A padded query must weigh nothing: its log-sum-exp is infinite.
        row_lse = _heads(lse[:, :, :, k].unsqueeze(-1), window, dilation, fill=float("inf"))
        weights = (scores - row_lse).exp()
        row_dot = (grad * _heads(out[:, :, :, k], window, dilation)).sum(dim=-1, keepdim=True)
        grad_scores = weights * (grad @ value.mT - row_dot)
        if need_qkv:
            parts = (
                scale * (grad_scores @ key),
                scale * (grad_scores.mT @ query),
                weights.mT @ grad,
            )
            maps = [_to_map(part, size, window, dilation) for part in parts]
            grad_qkv.append(torch.stack(maps, dim=3).to(dtype))
        if need_bias and bias is not None:
            pairs = rearrange(grad_scores.sum(dim=(0, 1)), "h s t -> (s t) h")
            offsets = relative_offsets(window, qkv.device).flatten()
            grad_bias.append(torch.zeros_like(bias[k]).index_add(0, offsets, pairs))
    return (
        torch.stack(grad_qkv, dim=3) if grad_qkv else qkv.new_empty(0, dtype=dtype),
        torch.stack(grad_bias) if grad_bias else qkv.new_empty(0, dtype=statistics_dtype(qkv)),
    )


def relative_offsets(window: int, device: torch.device | None = None) -> Tensor:
    """Row of the bias table for every (query slot, key slot): (P*P, P*P) int64, query minus key."""
    slot = torch.arange(window * window, device=device)
    a, b = slot // window, slot % window
    rows = a[:, None] - a[None, :] + window - 1
    columns = b[:, None] - b[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def _windows(qkv: Tensor, window: int, dilation: int) -> tuple[Tensor, ...]:
    """One branch (B, H, W, 3, h, e) -> query, key, value, each (B, windows, h, P*P, e)."""
    heads = qkv.shape[-2]
    windows = atrous_partition(qkv.flatten(-3), window, dilation)
    return rearrange(windows, "B w s (three h e) -> three B w h s e", three=3, h=heads).unbind()


def _heads(x: Tensor, window: int, dilation: int, fill: float = 0.0) -> Tensor:
    """One branch (B, H, W, h, e) -> (B, windows, h, P*P, e)."""
    windows = atrous_partition(x.flatten(-2), window, dilation, fill)
    return rearrange(windows, "B w s (h e) -> B w h s e", h=x.shape[-2])


def _to_map(x: Tensor, size: Sequence[int], window: int, dilation: int) -> Tensor:
    """Windows of one branch (B, windows, h, P*P, e) -> (B, H, W, h, e)."""
    windows = rearrange(x, "B w h s e -> B w s (h e)")
    merged = atrous_merge(windows, size[0], size[1], window, dilation)
    return merged.unflatten(-1, (x.shape[2], x.shape[4]))


def _scores(
    query: Tensor,
    key: Tensor,
    table: Tensor | None,
    size: Sequence[int],
    window: int,
    dilation: int,
    scale: float,
) -> Tensor:
    """Masked scores (B, windows, h, P*P queries, P*P keys) of one branch."""
    scores = (scale * query) @ key.mT
    if table is not None:
        by_pair = table[relative_offsets(window, table.device)]
        scores = scores + rearrange(by_pair, "s t h -> h s t").to(scores.dtype)
    if size[0] % (window * dilation) or size[1] % (window * dilation):
        inside = atrous_partition(query.new_ones(1, *size, 1), window, dilation) > 0
        outside = ~rearrange(inside, "1 w t 1 -> w 1 1 t")
        # The smallest finite number: a window wholly outside the map must not become 0 / 0.
        scores = scores.masked_fill(outside, torch.finfo(scores.dtype).min)
    return scores


def _table(bias: Tensor | None, branch: int) -> Tensor | None:
    return None if bias is None else bias[branch]


def _check(qkv: Tensor, bias: Tensor | None, dilations: Sequence[int], window: int) -> None:
    if qkv.ndim != 7 or qkv.shape[4] != 3:
        raise ValueError(f"qkv must be (B, H, W, n, 3, h, e), got shape {tuple(qkv.shape)}")
    branches, heads = qkv.shape[3], qkv.shape[5]
    if len(dilations) != branches or any(dilation < 1 for dilation in dilations):
        raise ValueError(
            f"dilations must be one positive integer for each of qkv's {branches} branches, "
            f"got {list(dilations)}"
        )
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    expected = (branches, (2 * window - 1) ** 2, heads)
    if bias is not None and tuple(bias.shape) != expected:
        raise ValueError(f"bias must be (n, (2P-1)**2, h) = {expected}, got {tuple(bias.shape)}")
