"""Single-query attention with the key and value projections moved to the other side.

A score <q, W_k x_i + b_k> is <W_k^T q, x_i> plus a constant that the softmax cancels, and an
average of W_v x_i + b_v is W_v times the average of x_i, plus b_v. With few queries it is therefore
cheaper to project these than the tokens: 2 N C h G multiply-accumulates instead of
N (2 C^2 + 2 G C), and neither keys nor values exist. Exact in real arithmetic. PartialFormer
Eq. 5.6, MCGA Eq. 3.
"""

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype
from python_ref.ops.single_query_attention import (
    check_exclude,
    check_query,
    mask_excluded,
    per_image,
    single_query_attention,
    single_query_attention_backward,
)


def single_query_attention_absorbed(
    query: Tensor,
    x: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    scale: float,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`single_query_attention` with k = x key_weight^T and v = x value_weight^T + value_bias.

    With r_gj = key_weight_j^T q_gj (a vector of C channels for query g and head j):
    p_gji = softmax_i(scale * <r_gj, x_i>), m_gj = sum_i p_gji x_i and
    out_gj = value_weight_j m_gj + value_bias_j.

    Args:
        query: (B, G, h, d), or (G, h, d) for queries that all images share; any floating dtype.
        x: tokens (B, N, C), N >= 1, any strides.
        key_weight: (h * d, C), head j in rows j * d and following. A bias of the keys has no
            influence on the output.
        value_weight: (h * dv, C), likewise.
        value_bias: (h * dv,) or None.
        scale: factor of the scores, usually d**-0.5.
        exclude: indices (B, n) of tokens that are no keys, n < N, int32 or int64; or None.

    Returns:
        out (B, G, h, dv) in x's dtype, and the log-sum-exp of the scores (B, h, G) in float32
        (float64 for float64), natural logarithm, without a bias of the keys.

    Raises:
        ValueError: shapes do not fit, or no key is left.
    """
    out = single_query_attention_absorbed_out(
        query, x, key_weight, value_weight, value_bias, scale, exclude
    )
    wide = (t.to(statistics_dtype(x)) for t in (query, x, key_weight))
    return out, _scores(*wide, scale, exclude).logsumexp(dim=-1)


def single_query_attention_absorbed_out(
    query: Tensor,
    x: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    scale: float,
    exclude: Tensor | None = None,
) -> Tensor:
    """`single_query_attention_absorbed` without the log-sum-exp."""
    _check(query, x, key_weight, value_weight, value_bias, exclude)
    weights = _scores(query, x, key_weight, scale, exclude).softmax(dim=-1)
    mean = torch.einsum("bhgn,bnc->bghc", weights, x)
    out = torch.einsum("bghc,hec->bghe", mean, _by_head(value_weight, query))
    return out if value_bias is None else out + value_bias.reshape(out.shape[2:])


def single_query_attention_absorbed_backward(
    grad_out: Tensor,
    query: Tensor,
    x: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    lse: Tensor,
    scale: float,
    exclude: Tensor | None,
    need_query: bool,
    need_x: bool,
    need_key_weight: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `single_query_attention_absorbed`: weights are rebuilt as p = exp(s - lse).

    With m and r as in the forward, u_gj = value_weight_j^T dout_gj, D_gj = <u_gj, m_gj> and
    ds_gji = p_gji * (<u_gj, x_i> - D_gj): dx_i = sum_gj (p_gji u_gj + scale * ds_gji r_gj),
    dr_gj = scale * sum_i ds_gji x_i, dq_gj = key_weight_j dr_gj, and, summed over queries and
    images, dkey_weight_j = q_gj dr_gj^T, dvalue_weight_j = dout_gj m_gj^T, dvalue_bias_j = dout_gj.
    Computed in float32 (float64 for float64) whatever the data's dtype.

    Args:
        grad_out: gradient of out, (B, G, h, dv).
        query, x, key_weight, value_weight, value_bias, scale, exclude: as in the forward.
        lse: what the forward returned.
        need_query, need_x, need_key_weight, need_value: which gradients to compute; the last one
            is for value_weight and value_bias.

    Returns:
        (dquery, dx, dkey_weight, dvalue_weight, dvalue_bias) in the dtypes of the inputs; what is
        not needed, or belongs to no input, has shape (0,).
    """
    _check(query, x, key_weight, value_weight, value_bias, exclude)
    inputs = (query, x, key_weight, value_weight, x if value_bias is None else value_bias)
    wide = statistics_dtype(x)
    grad_out, query, x, key_weight, value_weight = (
        t.to(wide) for t in (grad_out, query, x, key_weight, value_weight)
    )
    key_heads, value_heads = _by_head(key_weight, query), _by_head(value_weight, query)
    absorbed = torch.einsum("bghd,hdc->bghc", per_image(query, x), key_heads)
    weights = (_scores(query, x, key_weight, scale, exclude) - lse.unsqueeze(-1)).exp()
    mean = torch.einsum("bhgn,bnc->bghc", weights, x)
    grad_mean = torch.einsum("bghe,hec->bghc", grad_out, value_heads)
    row_dot = torch.einsum("bghc,bghc->bhg", grad_mean, mean).unsqueeze(-1)
    grad_scores = weights * (torch.einsum("bghc,bnc->bhgn", grad_mean, x) - row_dot)
    grad_absorbed = scale * torch.einsum("bhgn,bnc->bghc", grad_scores, x)
    grads = [x.new_empty(0) for _ in inputs]
    if need_query:
        grad_query = torch.einsum("bghc,hdc->bghd", grad_absorbed, key_heads)
        grads[0] = grad_query.sum(dim=0) if query.ndim == 3 else grad_query
    if need_x:
        through_mean = torch.einsum("bhgn,bghc->bnc", weights, grad_mean)
        grads[1] = through_mean + scale * torch.einsum("bhgn,bghc->bnc", grad_scores, absorbed)
    if need_key_weight:
        grad_key = torch.einsum("bghd,bghc->hdc", per_image(query, x), grad_absorbed)
        grads[2] = grad_key.flatten(0, 1)
    if need_value:
        grads[3] = torch.einsum("bghe,bghc->hec", grad_out, mean).flatten(0, 1)
        if value_bias is not None:
            grads[4] = grad_out.sum(dim=(0, 1)).flatten()
    grads = [grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)]
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def single_query_pool(
    query: Tensor, x: Tensor, scale: float, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What is left between the two projections: tokens that are their own keys and values.

    Args:
        query: absorbed queries (B, G, C), or (G, C) for queries that all images share.
        x: tokens (B, N, C), N >= 1, any strides.
        scale, exclude: as in `single_query_attention`.

    Returns:
        out (B, G, C), averages of x, and the log-sum-exp of the scores (B, G).

    Raises:
        ValueError: shapes do not fit, or no token is left.
    """
    tokens = x.unsqueeze(-2)
    out, lse = single_query_attention(query.unsqueeze(-2), tokens, tokens, scale, exclude)
    return out.squeeze(-2), lse.squeeze(1)


def single_query_pool_backward(
    grad_out: Tensor,
    query: Tensor,
    x: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    exclude: Tensor | None,
    need_query: bool,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `single_query_pool`, (dquery, dx); what is not needed has shape (0,).

    dx is the sum of what `single_query_attention_backward` gives for keys and for values.
    """
    wide, dtype = statistics_dtype(x), x.dtype
    grad_out, out, query, x = (t.to(wide).unsqueeze(-2) for t in (grad_out, out, query, x))
    grad_query, grad_k, grad_v = single_query_attention_backward(
        grad_out, query, x, x, out, lse.unsqueeze(1), scale, exclude, need_query, need_x, need_x
    )
    grad_query = grad_query.squeeze(-2) if need_query else grad_query
    grad_x = (grad_k + grad_v).squeeze(-2) if need_x else grad_k
    return grad_query.to(dtype), grad_x.to(dtype)


def _by_head(weight: Tensor, query: Tensor) -> Tensor:
    """Weight (h * d, C) -> (h, d, C)."""
    return weight.unflatten(0, (query.shape[-2], -1))


def _scores(
    query: Tensor, x: Tensor, key_weight: Tensor, scale: float, exclude: Tensor | None
) -> Tensor:
    """Masked scores (B, h, G, N)."""
    absorbed = torch.einsum("bghd,hdc->bghc", per_image(query, x), _by_head(key_weight, query))
    return mask_excluded(torch.einsum("bghc,bnc->bhgn", scale * absorbed, x), exclude)


def _check(
    query: Tensor,
    x: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    exclude: Tensor | None,
) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be (B, N, C), got shape {tuple(x.shape)}")
    batch, _, channels = x.shape
    heads, width = query.shape[-2:] if query.ndim > 1 else (0, 0)
    check_query(query, batch, heads, width)
    if tuple(key_weight.shape) != (heads * width, channels):
        raise ValueError(
            f"key_weight must be (h * d, C) = {(heads * width, channels)}, got "
            f"{tuple(key_weight.shape)}"
        )
    rows = value_weight.shape[0] if value_weight.ndim == 2 else 0
    if rows == 0 or rows % heads or value_weight.shape[1] != channels:
        raise ValueError(
            f"value_weight must be (h * dv, C) with h = {heads} and C = {channels}, got "
            f"{tuple(value_weight.shape)}"
        )
    if value_bias is not None and tuple(value_bias.shape) != (rows,):
        raise ValueError(f"value_bias must be ({rows},), got {tuple(value_bias.shape)}")
    check_exclude(exclude, x)
