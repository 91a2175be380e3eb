"""Attention of a few learned queries over very many keys.

One query per image is the single-query attention of PartialFormer (Sec. 5.3.4, Eq. 5.6), eight
queries shared by all images are the group attention of MCGA (Sec. 3.2, Eq. 3); class attention and
attention pooling have the same form. `single_query_attention_absorbed` computes it without keys
and values.
"""

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def single_query_attention(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Multi-head attention of G queries over the tokens of an image, some of them left out.

    With s_gi = scale * <q_g, k_i> over the tokens i that are not excluded:
    out_g = sum_i softmax_i(s_gi) v_i.

    Args:
        query: (B, G, h, d), or (G, h, d) for queries that all images share; any floating dtype.
        k: keys (B, N, h, d), N >= 1, any strides.
        v: values (B, N, h, dv); dv may differ from d.
        scale: factor of the scores, usually d**-0.5.
        exclude: indices (B, n) of tokens that are no keys, n < N, int32 or int64; or None.

    Returns:
        out (B, G, h, dv) in k's dtype, and the log-sum-exp of the scores (B, h, G) in float32
        (float64 for float64), natural logarithm.

    Raises:
        ValueError: shapes do not fit, or no key is left.
    """
    out = single_query_attention_out(query, k, v, scale, exclude)
    wide = (t.to(statistics_dtype(k)) for t in (query, k))
    return out, _scores(*wide, scale, exclude).logsumexp(dim=-1)


def single_query_attention_out(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    exclude: Tensor | None = None,
) -> Tensor:
    """`single_query_attention` without the log-sum-exp, which a plain model would not compute."""
    _check(query, k, v)
    check_exclude(exclude, k)
    weights = _scores(query, k, scale, exclude).softmax(dim=-1)
    return torch.einsum("bhgn,bnhe->bghe", weights, v)


def single_query_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    exclude: Tensor | None,
    need_query: bool,
    need_k: bool,
    need_v: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `single_query_attention`: the weights are rebuilt as p = exp(s - lse).

    With D_g = <dout_g, out_g> and ds_gi = p_gi * (<dout_g, v_i> - D_g):
    dq_g = scale * sum_i ds_gi k_i, dk_i = scale * sum_g ds_gi q_g, dv_i = sum_g p_gi dout_g; the
    gradient of shared queries is summed over images too. Excluded tokens have p = ds = 0.
    Computed in float32 (float64 for float64) whatever the data's dtype.

    Args:
        grad_out: gradient of out, (B, G, h, dv).
        query, k, v, scale, exclude: as in the forward.
        out, lse: what the forward returned.
        need_query, need_k, need_v: which gradients to compute.

    Returns:
        (dquery, dk, dv) like query, k and v; what is not needed has shape (0,).
    """
    _check(query, k, v)
    check_exclude(exclude, k)
    dtypes = query.dtype, k.dtype, v.dtype
    wide = statistics_dtype(k)
    grad_out, query, k, v, out = (t.to(wide) for t in (grad_out, query, k, v, out))
    weights = (_scores(query, k, scale, exclude) - lse.unsqueeze(-1)).exp()
    row_dot = torch.einsum("bghe,bghe->bhg", grad_out, out).unsqueeze(-1)
    grad_scores = weights * (torch.einsum("bghe,bnhe->bhgn", grad_out, v) - row_dot)
    grads = [query.new_empty(0), k.new_empty(0), v.new_empty(0)]
    if need_query:
        grads[0] = scale * torch.einsum("bhgn,bnhd->bghd", grad_scores, k)
        if query.ndim == 3:
            grads[0] = grads[0].sum(dim=0)
    if need_k:
        grads[1] = scale * torch.einsum("bhgn,bghd->bnhd", grad_scores, per_image(query, k))
    if need_v:
        grads[2] = torch.einsum("bhgn,bghe->bnhe", weights, grad_out)
    grad_query, grad_k, grad_v = (g.to(d) for g, d in zip(grads, dtypes, strict=True))
    return grad_query, grad_k, grad_v


def per_image(query: Tensor, tokens: Tensor) -> Tensor:
    """Queries (B, G, h, d), whether or not the images of tokens (B, N, ...) share them."""
    return query if query.ndim == 4 else query.expand(tokens.shape[0], -1, -1, -1)


def mask_excluded(scores: Tensor, exclude: Tensor | None) -> Tensor:
    """Scores (B, h, G, N) with -inf for the excluded tokens."""
    if exclude is None:
        return scores
    mask = torch.zeros(scores.shape[0], scores.shape[-1], dtype=torch.bool, device=scores.device)
    mask = mask.scatter(1, exclude.long(), True)
    return scores.masked_fill(mask[:, None, None, :], -torch.inf)


def check_exclude(exclude: Tensor | None, tokens: Tensor) -> None:
    """Refuse indices that do not fit tokens (B, N, ...), or that may leave no token."""
    batch, number = tokens.shape[:2]
    if number == 0:
        raise ValueError("there must be at least one key, got N = 0")
    if exclude is None:
        return
    if exclude.ndim != 2 or exclude.shape[0] != batch:
        raise ValueError(f"exclude must be (B, n) = ({batch}, n), got {tuple(exclude.shape)}")
    if exclude.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"exclude must hold int32 or int64 indices, got {exclude.dtype}")
    if exclude.shape[1] >= number:
        raise ValueError(
            f"exclude must leave at least one of the N = {number} tokens, got {exclude.shape[1]} "
            "indices"
        )


def _scores(query: Tensor, k: Tensor, scale: float, exclude: Tensor | None) -> Tensor:
    """Masked scores (B, h, G, N)."""
    scores = torch.einsum("bghd,bnhd->bhgn", scale * per_image(query, k), k)
    return mask_excluded(scores, exclude)


def _check(query: Tensor, k: Tensor, v: Tensor) -> None:
    if k.ndim != 4:
        raise ValueError(f"k must be (B, N, h, d), got shape {tuple(k.shape)}")
    batch, number, heads, width = k.shape
    if v.ndim != 4 or tuple(v.shape[:3]) != (batch, number, heads):
        raise ValueError(
            f"v must be (B, N, h, dv) = ({batch}, {number}, {heads}, dv), got {tuple(v.shape)}"
        )
    check_query(query, batch, heads, width)


def check_query(query: Tensor, batch: int, heads: int, width: int) -> None:
    """Refuse queries that are neither (G, h, d) nor (B, G, h, d)."""
    fits = query.ndim in (3, 4) and tuple(query.shape[-2:]) == (heads, width)
    if not fits or (query.ndim == 4 and query.shape[0] != batch):
        raise ValueError(
            f"query must be (G, {heads}, {width}) or ({batch}, G, {heads}, {width}), got "
            f"{tuple(query.shape)}"
        )
