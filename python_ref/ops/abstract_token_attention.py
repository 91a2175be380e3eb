"""Window attention with one abstract token per window, MAT Sec. 4.3.1, Eq. 4.1 to 4.3.

Every window of the map attends within itself and to a learned token that all windows share; that
token attends to the window as well, and its output summarises the window.
"""

import torch
from torch import Tensor

from python_ref.ops.atrous_partition import atrous_merge, atrous_partition
from python_ref.ops.precision import statistics_dtype


def abstract_token_attention(
    qkv: Tensor,
    token: Tensor,
    window: int,
    scale: float,
    pad_kv: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-head attention among the abstract token (row 0) and the pixels of every window.

    For every image, window and head: out_r = sum_s softmax_s(scale * <q_r, k_s>) v_s over the
    rows s = 0..window**2. Windows and the pixels in them are numbered row by row. A map that the
    windows do not tile is continued at the bottom and at the right: pixels there are no queries,
    and no keys either unless pad_kv gives them a key and a value.

    Args:
        qkv: queries, keys and values (B, H, W, 3, h, d); any floating dtype, any strides.
        token: query, key and value (3, h, d) of the abstract token.
        window: window side, in pixels.
        scale: factor of the scores, usually d**-0.5.
        pad_kv: key and value (2, h, d) of a pixel outside the map (zeros that went through the
            linear layer, as in Swin), or None to mask it.

    Returns:
        out (B, H, W, h, d) and summary (B, windows, h, d), the abstract token's output, in qkv's
        dtype; and the log-sum-exp of the scores (B, windows, h, 1 + window**2) in float32
        (float64 for float64), natural logarithm, 0 for pixels outside the map.

    Raises:
        ValueError: an argument has the wrong rank, size or sign.
    """
    out, summary = abstract_token_attention_out(qkv, token, window, scale, pad_kv)
    wide = statistics_dtype(qkv)
    query, key, _ = _rows(qkv.to(wide), token.to(wide), window, _to(pad_kv, wide))
    lse = _scores(query, key, qkv.shape[1:3], window, scale, pad_kv is None).logsumexp(dim=-1)
    outside = ~_inside(qkv.shape[1:3], window, qkv.device)
    return out, summary, lse.masked_fill(outside[:, None, :], 0)


def abstract_token_attention_out(
    qkv: Tensor,
    token: Tensor,
    window: int,
    scale: float,
    pad_kv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`abstract_token_attention` without the log-sum-exp."""
    _check(qkv, token, window, pad_kv)
    size, dtype = qkv.shape[1:3], qkv.dtype
    query, key, value = _rows(qkv, token.to(dtype), window, _to(pad_kv, dtype))
    out = _scores(query, key, size, window, scale, pad_kv is None).softmax(dim=-1) @ value
    return _to_map(out, size, window), out[..., 0, :]


def abstract_token_attention_backward(
    grad_out: Tensor,
    grad_summary: Tensor,
    qkv: Tensor,
    token: Tensor,
    pad_kv: Tensor | None,
    out: Tensor,
    summary: Tensor,
    lse: Tensor,
    dq_extra: Tensor | None,
    window: int,
    scale: float,
    need_qkv: bool,
    need_token: bool,
    need_pad_kv: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `abstract_token_attention`: the weights are rebuilt as P = exp(S - lse).

    With D_r = <dout_r, out_r>, row 0 being the summary, and dS = P * (dout v^T - D):
    dq = scale * dS k, dk = scale * dS^T q, dv = P^T dout. Row 0 of these, summed over images and
    windows, is the gradient of token, that of the pixels outside the map the gradient of pad_kv.
    Computed in float32 (float64 for float64) whatever the data's dtype.

    Args:
        grad_out, grad_summary: gradients of out (B, H, W, h, d) and summary (B, windows, h, d).
        qkv, token, pad_kv, window, scale: as in the forward.
        out, summary, lse: what the forward returned.
        dq_extra: gradient (B, H, W, h, d) that reaches the queries on another way, added to
            theirs; MAT's token fusion reads the same queries. Or None.
        need_qkv, need_token, need_pad_kv: which gradients to compute.

    Returns:
        (dqkv, dtoken, dpad_kv) like qkv, token and pad_kv; what is not needed, or belongs to no
        input, has shape (0,).
    """
    _check(qkv, token, window, pad_kv)
    size, wide, narrow = qkv.shape[1:3], statistics_dtype(qkv), qkv.dtype
    rows = _rows(qkv.to(wide), token.to(wide), window, _to(pad_kv, wide))
    query, key, value = rows
    grad = _with_token(grad_out.to(wide), grad_summary.to(wide), window)
    forward = _with_token(out.to(wide), summary.to(wide), window)
    inside = _inside(size, window, qkv.device)[:, None, :, None]
    scores = _scores(query, key, size, window, scale, pad_kv is None)
    # What is computed for a query outside the map is dropped: its row must weigh nothing.
    weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(~inside, 0)
    row_dot = (grad * forward).sum(dim=-1, keepdim=True)
    grad_scores = weights * (grad @ value.mT - row_dot)
    grads = (scale * grad_scores @ key, scale * grad_scores.mT @ query, weights.mT @ grad)
    none = qkv.new_empty(0, dtype=wide)
    grad_qkv, grad_token, grad_pad_kv = none.to(narrow), none.to(token.dtype), none
    if need_qkv:
        dq, dk, dv = (_to_map(g, size, window) for g in grads)
        dq = dq if dq_extra is None else dq + dq_extra
        grad_qkv = torch.stack([dq, dk, dv], dim=3).to(narrow)
    if need_token:
        grad_token = torch.stack([g[..., 0, :].sum(dim=(0, 1)) for g in grads]).to(token.dtype)
    if need_pad_kv and pad_kv is not None:
        outside = (g.masked_fill(inside, 0).sum(dim=(0, 1, 3)) for g in grads[1:])
        grad_pad_kv = torch.stack(list(outside)).to(pad_kv.dtype)
    return grad_qkv, grad_token, grad_pad_kv


def _rows(qkv: Tensor, token: Tensor, window: int, pad_kv: Tensor | None) -> tuple[Tensor, ...]:
    """Query, key and value of all rows, each (B, windows, h, 1 + window**2, d)."""
    windows = atrous_partition(qkv.flatten(3), window, 1).unflatten(-1, token.shape)
    pixels = windows.permute(3, 0, 1, 4, 2, 5)
    first = token[:, None, None, :, None, :].expand(-1, *pixels.shape[1:4], -1, -1)
    query, key, value = torch.cat([first, pixels], dim=-2).unbind()
    if pad_kv is not None:
        inside = _inside(qkv.shape[1:3], window, qkv.device)[:, None, :, None]
        key, value = (
            torch.where(inside, row, pad[:, None, :])
            for row, pad in zip((key, value), pad_kv.unbind(), strict=True)
        )
    return query, key, value


def _with_token(pixels: Tensor, summary: Tensor, window: int) -> Tensor:
    """(B, H, W, h, d) and (B, windows, h, d) -> rows (B, windows, h, 1 + window**2, d)."""
    windows = atrous_partition(pixels.flatten(3), window, 1).unflatten(-1, summary.shape[2:])
    return torch.cat([summary.unsqueeze(-2), windows.transpose(2, 3)], dim=-2)


def _to_map(rows: Tensor, size: torch.Size, window: int) -> Tensor:
    """The pixels of rows (B, windows, h, 1 + window**2, d) -> (B, H, W, h, d)."""
    windows = rows[..., 1:, :].transpose(2, 3)
    return atrous_merge(windows.flatten(3), *size, window, 1).unflatten(-1, windows.shape[3:])


def _inside(size: torch.Size, window: int, device: torch.device) -> Tensor:
    """Whether a row is the token or a pixel of the map: (windows, 1 + window**2)."""
    inside = atrous_partition(torch.ones(1, *size, 1, device=device), window, 1)[0, :, :, 0] > 0
    return torch.cat([inside.new_ones(inside.shape[0], 1), inside], dim=1)


def _scores(
    query: Tensor, key: Tensor, size: torch.Size, window: int, scale: float, mask_pad: bool
) -> Tensor:
    """Scores (B, windows, h, rows, rows), -inf for keys outside the map if mask_pad."""
    scores = (scale * query) @ key.mT
    if mask_pad and (size[0] % window or size[1] % window):
        outside = ~_inside(size, window, query.device)
        scores = scores.masked_fill(outside[:, None, None, :], -torch.inf)
    return scores


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


def _check(qkv: Tensor, token: Tensor, window: int, pad_kv: Tensor | None) -> None:
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be (B, H, W, 3, h, d), got shape {tuple(qkv.shape)}")
    head = tuple(qkv.shape[4:])
    if tuple(token.shape) != (3, *head):
        raise ValueError(f"token must be (3, h, d) = {(3, *head)}, got {tuple(token.shape)}")
    if pad_kv is not None and tuple(pad_kv.shape) != (2, *head):
        raise ValueError(f"pad_kv must be (2, h, d) = {(2, *head)}, got {tuple(pad_kv.shape)}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
