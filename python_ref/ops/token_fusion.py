"""Pixels read abstract tokens by cross-attention, MAT Sec. 4.3.1, Eq. 4.5."""

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def token_fusion(q: Tensor, kv: Tensor, y: Tensor, scale: float) -> Tensor:
    """Add multi-head attention over the abstract tokens of the image to every pixel.

    z_i = y_i + sum_w softmax_w(scale * <q_i, k_w>) v_w, head by head.

    Args:
        q: queries of the pixels (B, N, h, d), any floating dtype, any strides.
        kv: keys and values of the abstract tokens (B, M, 2, h, d), M >= 1.
        y: what the attention is added to, (B, N, h, d).
        scale: factor of the scores, usually d**-0.5.

    Returns:
        z (B, N, h, d) in y's dtype.

    Raises:
        ValueError: shapes do not fit, or there is no token.
    """
    _check(q, kv, y)
    key, value = kv.unbind(dim=2)
    return y + torch.einsum("bhnm,bmhd->bnhd", _weights(q, key, scale), value)


def token_fusion_backward(
    grad: Tensor, q: Tensor, kv: Tensor, scale: float, need_q: bool, need_kv: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `token_fusion` with respect to q and kv; that of y is `grad` itself.

    With the weights p, dp_iw = <dz_i, v_w> and ds_iw = p_iw * (dp_iw - sum_u p_iu dp_iu):
    dq_i = scale * sum_w ds_iw k_w, dk_w = scale * sum_i ds_iw q_i, dv_w = sum_i p_iw dz_i.
    The weights are computed again: tokens are few. Computed in float32 (float64 for float64)
    whatever the data's dtype.

    Args:
        grad: gradient of z, (B, N, h, d).
        q, kv, scale: as in the forward.
        need_q, need_kv: which gradients to compute.

    Returns:
        (dq, dkv) like q and kv; what is not needed has shape (0,).
    """
    _check(q, kv, grad)
    dtype = q.dtype
    grad, q, kv = (t.to(statistics_dtype(q)) for t in (grad, q, kv))
    key, value = kv.unbind(dim=2)
    weights = _weights(q, key, scale)
    grad_weights = torch.einsum("bnhd,bmhd->bhnm", grad, value)
    row_dot = (weights * grad_weights).sum(dim=-1, keepdim=True)
    grad_scores = scale * weights * (grad_weights - row_dot)
    grad_q, grad_kv = q.new_empty(0), q.new_empty(0)
    if need_q:
        grad_q = torch.einsum("bhnm,bmhd->bnhd", grad_scores, key)
    if need_kv:
        grad_key = torch.einsum("bhnm,bnhd->bmhd", grad_scores, q)
        grad_value = torch.einsum("bhnm,bnhd->bmhd", weights, grad)
        grad_kv = torch.stack([grad_key, grad_value], dim=2)
    return grad_q.to(dtype), grad_kv.to(dtype)


def _weights(q: Tensor, key: Tensor, scale: float) -> Tensor:
    """Softmax over the tokens, (B, h, N, M)."""
    return torch.einsum("bnhd,bmhd->bhnm", scale * q, key).softmax(dim=-1)


def _check(q: Tensor, kv: Tensor, y: Tensor) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be (B, N, h, d), got shape {tuple(q.shape)}")
    if y.shape != q.shape:
        raise ValueError(f"y must be {tuple(q.shape)} like q, got {tuple(y.shape)}")
    batch, _, heads, width = q.shape
    tokens = kv.shape[1] if kv.ndim == 5 else 0
    if tokens == 0 or tuple(kv.shape) != (batch, tokens, 2, heads, width):
        raise ValueError(
            f"kv must be (B, M, 2, h, d) = ({batch}, M, 2, {heads}, {width}) with M >= 1, got "
            f"{tuple(kv.shape)}"
        )
