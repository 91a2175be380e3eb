"""Attention whose heads are mixed before and after the softmax, PartialFormer Eq. 5.5 (MMSA)."""

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def mixed_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention with two linear layers across heads around the softmax over keys.

    S_j = scale * q_j k_j^T, Z_g = sum_j w1[g, j] S_j + b1[g], P_g = softmax over keys of Z_g,
    A_j = sum_g w2[j, g] P_g + b2[j], out_j = A_j v_j, with h heads j and e * h mixed heads g. The
    rows of A need not be positive, nor sum to one.

    Args:
        q: queries (B, M, h, d), any floating dtype, any strides.
        k: keys (B, M, h, d), M >= 1.
        v: values (B, M, h, d).
        w1, b1: first layer (e * h, h) and (e * h,).
        w2, b2: second layer (h, e * h) and (h,).
        scale: factor of the scores, usually d**-0.5.

    Returns:
        out (B, M, h, d) in q's dtype, and the log-sum-exp of Z (B, e * h, M) in float32 (float64
        for float64), natural logarithm.

    Raises:
        ValueError: shapes do not fit, or there is no token.
    """
    out = mixed_head_attention_out(q, k, v, w1, b1, w2, b2, scale)
    wide = (t.to(statistics_dtype(q)) for t in (q, k, w1, b1))
    return out, _mixed_scores(*wide, scale).logsumexp(dim=-1)


def mixed_head_attention_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    """`mixed_head_attention` without the log-sum-exp."""
    _check(q, k, v, w1, b1, w2, b2)
    weights = _mixed_scores(q, k, w1, b1, scale).softmax(dim=-1)
    mixed = torch.einsum("jg,bgmn->bjmn", w2, weights) + b2[:, None, None]
    return torch.einsum("bjmn,bnjd->bmjd", mixed, v)


def mixed_head_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    lse: Tensor,
    scale: float,
    need_qk: bool,
    need_v: bool,
    need_mix: bool,
) -> tuple[Tensor, ...]:
    """Gradients of `mixed_head_attention`: the weights are rebuilt as P = exp(Z - lse).

    dv_j = A_j^T dout_j, dA_j = dout_j v_j^T, dP_g = sum_j w2[j, g] dA_j,
    dZ_g = P_g * (dP_g - D_g) with D_g = sum over keys of P_g * dP_g (the mixing forbids the usual
    <dout, out>), dS_j = sum_g w1[g, j] dZ_g, dq = scale * dS k, dk = scale * dS^T q,
    dw1[g, j] = sum dZ_g * S_j, dw2[j, g] = sum dA_j * P_g, db2[j] = sum dA_j, db1 = 0. Computed in
    float32 (float64 for float64) whatever the data's dtype.

    Args:
        grad_out: gradient of out, (B, M, h, d).
        q, k, v, w1, b1, w2, b2, scale: as in the forward.
        lse: what the forward returned.
        need_qk, need_v, need_mix: which gradients to compute; the last one is for both layers.

    Returns:
        (dq, dk, dv, dw1, db1, dw2, db2) in the dtypes of the inputs; what is not needed has shape
        (0,).
    """
    _check(q, k, v, w1, b1, w2, b2)
    inputs = (q, k, v, w1, b1, w2, b2)
    wide = statistics_dtype(q)
    grad_out, q, k, v, w1, b1, w2, b2 = (t.to(wide) for t in (grad_out, *inputs))
    scores = _scores(q, k, scale)
    weights = (_mixed_scores(q, k, w1, b1, scale) - lse.unsqueeze(-1)).exp()
    grad_mixed = torch.einsum("bmjd,bnjd->bjmn", grad_out, v)
    grad_weights = torch.einsum("jg,bjmn->bgmn", w2, grad_mixed)
    row_dot = (weights * grad_weights).sum(dim=-1, keepdim=True)
    grad_logits = weights * (grad_weights - row_dot)
    grads = [q.new_empty(0) for _ in inputs]
    if need_qk:
        grad_scores = scale * torch.einsum("gj,bgmn->bjmn", w1, grad_logits)
        grads[0] = torch.einsum("bjmn,bnjd->bmjd", grad_scores, k)
        grads[1] = torch.einsum("bjmn,bmjd->bnjd", grad_scores, q)
    if need_v:
        mixed = torch.einsum("jg,bgmn->bjmn", w2, weights) + b2[:, None, None]
        grads[2] = torch.einsum("bjmn,bmjd->bnjd", mixed, grad_out)
    if need_mix:
        grads[3] = torch.einsum("bgmn,bjmn->gj", grad_logits, scores)
        grads[4] = torch.zeros_like(b1)
        grads[5] = torch.einsum("bjmn,bgmn->jg", grad_mixed, weights)
        grads[6] = grad_mixed.sum(dim=(0, 2, 3))
    return tuple(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True))


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """S, (B, h, M, M)."""
    return torch.einsum("bmjd,bnjd->bjmn", scale * q, k)


def _mixed_scores(q: Tensor, k: Tensor, w1: Tensor, b1: Tensor, scale: float) -> Tensor:
    """Z, (B, e * h, M, M)."""
    return torch.einsum("gj,bjmn->bgmn", w1, _scores(q, k, scale)) + b1[:, None, None]


def _check(q: Tensor, k: Tensor, v: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    if q.ndim != 4 or q.shape[1] == 0:
        raise ValueError(f"q must be (B, M, h, d) with M >= 1, got shape {tuple(q.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape:
            raise ValueError(f"{name} must be {tuple(q.shape)} like q, got {tuple(tensor.shape)}")
    heads, mixed = q.shape[2], w1.shape[0] if w1.ndim else 0
    for name, tensor, meaning, expected in (
        ("w1", w1, "(e * h, h)", (mixed, heads)),
        ("b1", b1, "(e * h,)", (mixed,)),
        ("w2", w2, "(h, e * h)", (heads, mixed)),
        ("b2", b2, "(h,)", (heads,)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {meaning} = {expected}, got {tuple(tensor.shape)}")
