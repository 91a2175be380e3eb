"""Attention of one to sixteen queries to tokens that are their own keys and values."""

import math

import torch
from torch import Tensor

from ._registration import register, require, require_tensor
from .single_query_attention import MAX_QUERIES, check_exclude

MAX_CHANNELS = 128


def single_query_pool(query: Tensor, x: Tensor, scale: float, exclude: Tensor | None) -> Tensor:
    """Average the tokens of an image by the softmax of their scores: the tokens are read once.

    Args:
        query: ``(B, G, C)``, or ``(G, C)`` for queries that all images share; 1 to 16 queries.
        x: Tokens ``(B, N, C)``, at least one, ``1 <= C <= 128``. float32, bfloat16, float16, or
            float64 (CPU); any strides.
        scale: Factor of the scores.
        exclude: Indices ``(B, n)``, ``n < N``, int32 or int64, of tokens that are left out; or
            ``None``.

    Returns:
        ``(B, G, C)``, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: what `single_query_attention_absorbed` leaves between its projections.
    """
    return torch.ops.hybrid.single_query_pool(query, x, scale, exclude)[0]


def _fake(query, x, scale, exclude):
    B, _, C = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((B, query.shape[-2], C)), x.new_empty((B, query.shape[-2]), dtype=dtype)


def _fake_backward(grad_out, query, x, out, lse, scale, exclude, need_query, need_x):
    needs = ((query, need_query), (x, need_x))
    return tuple(tensor.new_empty(tensor.shape if need else (0,)) for tensor, need in needs)


def _setup_context(ctx, inputs, output):
    query, x, ctx.scale, exclude = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(query, x, exclude, out, lse)


def _backward(ctx, grad_out, grad_lse):
    query, x, exclude, out, lse = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.hybrid.single_query_pool_backward(
        grad_out, query, x, out, lse, ctx.scale, exclude, *needs
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None


def _flops(query, x, scale, exclude, **_):
    return 4 * query.shape[-2] * x.shape[0] * x.shape[1] * x.shape[2]


def _flops_backward(grad_out, query, x, *_, **__):
    """Scores, gradients of weights, of queries, and two shares of the tokens' gradients."""
    return 10 * query.shape[-2] * x.shape[0] * x.shape[1] * x.shape[2]


def _check(query, x, scale, exclude):
    op = "single_query_pool"
    require(
        x.dim() == 3,
        f"{op}: x has shape {tuple(x.shape)}; expected 3 dimensions: (B, N, channels)",
    )
    require(
        query.dim() in (2, 3),
        f"{op}: query has shape {tuple(query.shape)}; expected (G, channels), or (B, G, channels)",
    )
    require(
        x.is_floating_point(),
        f"{op}: x has {x.dtype}; expected float32, bfloat16, float16 or float64",
    )
    (B, N, C), G = x.shape, query.shape[-2]
    require(1 <= G <= MAX_QUERIES, f"{op}: query has {G} queries; expected 1 to {MAX_QUERIES}")
    require(1 <= C <= MAX_CHANNELS, f"{op}: x has {C} channels; expected 1 to {MAX_CHANNELS}")
    if query.dim() == 2:
        _check_tensor("query", query, x, (G, C), "(G, channels)")
    else:
        _check_tensor("query", query, x, (B, G, C), "(B, G, channels)")
    require(
        N >= 1 or B == 0,
        f"{op}: x holds no token, shape {tuple(x.shape)}; expected at least one",
    )
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    if exclude is not None:
        check_exclude(op, "x", exclude, x)


def _check_tensor(name, tensor, x, shape, meaning):
    require_tensor("single_query_pool", name, tensor, [shape], meaning, x.dtype, ("x", x))


def _check_backward(grad_out, query, x, out, lse, scale, exclude, need_query, need_x):
    _check(query, x, scale, exclude)
    shape = (x.shape[0], query.shape[-2], x.shape[2])
    _check_tensor("grad_out", grad_out, x, shape, "(B, G, channels)")
    _check_tensor("out", out, x, shape, "(B, G, channels)")


register(
    "single_query_pool",
    module="single_query_attention_absorbed",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("query", "x"),
    flops=_flops,
)
register(
    "single_query_pool_backward",
    module="single_query_attention_absorbed",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
