"""Attention of a few queries to tokens that are their own keys and values: one head."""

from torch import Tensor

from hybrid_kernels.triton.single_query_attention import attend, gradients
from hybrid_kernels.triton.token_rows import new_like


def single_query_pool(
    query: Tensor, x: Tensor, scale: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.single_query_pool: (out, lse). Raises RuntimeError for float64."""
    out, lse = attend(query.unsqueeze(-2), x.unsqueeze(-2), None, scale, exclude)
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
    """torch.ops.hybrid.single_query_pool_backward: (grad_query, grad_x).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    tokens = x.unsqueeze(-2)
    saved = (grad_out.unsqueeze(-2), out.unsqueeze(-2), lse.unsqueeze(1))
    grad_x, none = new_like(tokens, need_x), new_like(x, False)
    grad_query = gradients(
        saved, query.unsqueeze(-2), tokens, None, scale, exclude, need_query, (grad_x, none)
    )
    return (
        grad_query.squeeze(-2) if need_query else grad_query,
        grad_x.squeeze(-2) if need_x else grad_x,
    )
