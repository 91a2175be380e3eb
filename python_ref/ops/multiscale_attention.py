"""Softmax attention over several segments of keys and values: MSCSA Sec. 3.2, Eq. 6 and 7.

One softmax runs over the keys of all segments together. With a single segment this is the plain
multi-head attention of token mixing, region attention (MRL Sec. 2.1) and class tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def multiscale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """Multi-head attention of every query over the keys of all segments.

    With s_nm = scale * <q_n, k_m> over the keys m of all segments:
    out_n = sum_m softmax_m(s_nm) v_m.

    Args:
        q: queries (B, N, h, d), any floating dtype, any strides.
        ks: keys of every segment, (B, M_i, h, d); the M_i may differ.
        vs: values of every segment, (B, M_i, h, dv); dv may differ from d.
        scale: factor of the scores, usually d**-0.5.

    Returns:
        out (B, N, h, dv) in q's dtype, and the log-sum-exp of the scores (B, h, N) in float32
        (float64 for float64), natural logarithm.

    Raises:
        ValueError: shapes do not fit, or there is no segment.
    """
    out = multiscale_attention_out(q, ks, vs, scale).contiguous()
    lse = _scores(*(t.to(statistics_dtype(q)) for t in (q, _joined(ks))), scale).logsumexp(dim=-1)
    return out, lse


def multiscale_attention_out(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> Tensor:
    """`multiscale_attention` without the log-sum-exp, which a plain model would not compute."""
    _check(q, ks, vs)
    weights = _scores(q, _joined(ks), scale).softmax(dim=-1)
    return (weights @ _heads(_joined(vs))).transpose(1, 2)


def multiscale_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    scale: float,
    need_q: bool,
    need_ks: Sequence[bool],
    need_vs: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of `multiscale_attention` from its outputs: weights are rebuilt as exp(s - lse).

    With D_n = <dout_n, out_n>, p = exp(s - lse) and ds = p * (dout v^T - D), segment by segment:
    dq = scale * sum_i ds_i k_i, dk_i = scale * ds_i^T q, dv_i = p_i^T dout. Computed in float32
    (float64 for float64) whatever the data's dtype.

    Args:
        grad_out: gradient of out, (B, N, h, dv).
        q, ks, vs, scale: as in the forward.
        out, lse: what the forward returned. D needs the attention alone: never an `out` to which
            something was added.
        need_q, need_ks, need_vs: which gradients to compute, one entry per segment.

    Returns:
        (dq, [dk_i], [dv_i]) in the dtypes of the inputs; what is not needed has shape (0,).
    """
    _check(q, ks, vs)
    dtype = statistics_dtype(q)
    query, grad, forward = (_heads(t.to(dtype)) for t in (q, grad_out, out))
    row_dot = (grad * forward).sum(dim=-1, keepdim=True)
    grad_query, grad_ks, grad_vs = torch.zeros_like(query), [], []
    for k, v, need_k, need_v in zip(ks, vs, need_ks, need_vs, strict=True):
        key, value = (_heads(t.to(dtype)) for t in (k, v))
        weights = (scale * query @ key.mT - lse.unsqueeze(-1)).exp()
        grad_scores = weights * (grad @ value.mT - row_dot)
        grad_query += scale * (grad_scores @ key)
        grad_ks.append(_like(k, scale * (grad_scores.mT @ query)) if need_k else k.new_empty(0))
        grad_vs.append(_like(v, weights.mT @ grad) if need_v else v.new_empty(0))
    return _like(q, grad_query) if need_q else q.new_empty(0), grad_ks, grad_vs


def _joined(segments: Sequence[Tensor]) -> Tensor:
    return segments[0] if len(segments) == 1 else torch.cat(list(segments), dim=1)


def _heads(x: Tensor) -> Tensor:
    """(B, N, h, d) -> (B, h, N, d), a view."""
    return x.transpose(1, 2)


def _like(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient (B, h, N, d) in the layout and dtype of x (B, N, h, d)."""
    return grad.transpose(1, 2).to(x.dtype).contiguous()


def _scores(q: Tensor, key: Tensor, scale: float) -> Tensor:
    """(B, N, h, d) and (B, M, h, d) -> (B, h, N, M)."""
    return (scale * _heads(q)) @ _heads(key).mT


def _check(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be (B, N, h, d), got shape {tuple(q.shape)}")
    if not ks or len(ks) != len(vs):
        raise ValueError(
            f"ks and vs must hold the same number of segments, at least one, got {len(ks)} and "
            f"{len(vs)}"
        )
    batch, _, heads, width = q.shape
    value_width = vs[0].shape[-1]
    for i, (k, v) in enumerate(zip(ks, vs, strict=True)):
        keys = k.shape[1] if k.ndim == 4 else -1
        for name, segment, last in ((f"ks[{i}]", k, width), (f"vs[{i}]", v, value_width)):
            if tuple(segment.shape) != (batch, keys, heads, last):
                raise ValueError(
                    f"{name} must be (B, M_{i}, h, width) = ({batch}, {max(keys, 0)}, {heads}, "
                    f"{last}), got {tuple(segment.shape)}"
                )
