"""MAT's windows, and their queries for a second reader, whose gradient is added on the way."""

import torch
from torch import Tensor

from ._maps import autocast_data, widened


class _Fork(torch.autograd.Function):
    """abstract_token_attention, and the queries. What comes back is one gradient, written once."""

    @staticmethod
    def forward(ctx, qkv: Tensor, token: Tensor, window: int, scale: float, pad_kv: Tensor | None):
        attention = torch.ops.hybrid.abstract_token_attention(qkv, token, window, scale, pad_kv)
        out, summary, lse = attention
        ctx.window, ctx.scale = window, scale
        ctx.save_for_backward(qkv, token, pad_kv, out, summary, lse)
        ctx.set_materialize_grads(False)
        return out, summary, qkv[:, :, :, 0]

    @staticmethod
    def backward(ctx, grad_out: Tensor | None, grad_summary: Tensor | None, grad_q: Tensor | None):
        *_, out, summary, _ = ctx.saved_tensors
        need_qkv, need_token, _, _, need_pad_kv = ctx.needs_input_grad
        needed = need_qkv, need_token, need_pad_kv
        grads = torch.ops.hybrid.abstract_token_attention_backward(
            torch.zeros_like(out) if grad_out is None else grad_out,
            torch.zeros_like(summary) if grad_summary is None else grad_summary,
            *ctx.saved_tensors,
            grad_q if need_qkv else None,
            ctx.window,
            ctx.scale,
            *needed,
        )
        qkv, token, pad_kv = (g if need else None for g, need in zip(grads, needed, strict=True))
        return qkv, token, None, None, pad_kv


def abstract_token_fork(
    qkv: Tensor,
    token: Tensor,
    window: int = 7,
    scale: float | None = None,
    pad_kv: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`abstract_token_attention`, and the pixels' queries, for whatever else reads them.

    A slice of ``qkv`` leaves autograd a gradient of the whole tensor, zero but for the slice, and
    a pass to add it. Whoever reads the queries that this returns hands their gradient to the
    backward of the windows, which adds it while it writes.

    Args:
        qkv, token, window, scale, pad_kv: As in `abstract_token_attention`. Under autocast
            ``qkv`` is cast here, once for both readers.

    Returns:
        The pixels' output ``(B, H, W, h, d)``, the tokens' ``(B, windows, h, d)``, and the queries
        ``qkv[:, :, :, 0]``, ``(B, H, W, h, d)``.

    Raises:
        ValueError, RuntimeError: As `abstract_token_attention`.

    Source: MAT ("Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object
    Recognition"), Sec. 4.3.1, Eq. 4.1 to 4.5.
    """
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    return _Fork.apply(autocast_data(qkv), widened(token), window, scale, widened(pad_kv))
