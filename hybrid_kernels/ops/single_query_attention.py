"""Attention of one to sixteen queries over very many tokens."""

import math

import torch
from torch import Tensor

from ._registration import register, require, require_tensor

MAX_QUERIES = 16
MAX_HEAD_WIDTH = 128


def single_query_attention(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    exclude: Tensor | None = None,
) -> Tensor:
    """Attend from a few queries to all tokens of an image but the excluded ones.

    Single-query attention, group attention, class attention, attention pooling: the tokens are
    cut into blocks, whose partial results are merged in a fixed order.

    Args:
        query: ``(B, G, h, d)``, or ``(G, h, d)`` for queries that all images share; 1 to 16
            queries, ``1 <= d <= 128``.
        k: Keys ``(B, N, h, d)``, at least one. float32, bfloat16, float16, or float64 (CPU); any
            strides, fastest with a token's channels side by side.
        v: Values ``(B, N, h, dv)``, ``1 <= dv <= 128``.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.
        exclude: Indices ``(B, n)``, ``n < N``, int32 or int64, of tokens that are no keys; or
            ``None``.

    Returns:
        ``(B, G, h, dv)``, contiguous, in ``k``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: PartialFormer ("Efficient Vision Transformer with Partial Attention"), Eq. 5.6; MCGA
        ("Multi-scale Convolutions Meet Group Attention"), Eq. 3.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return torch.ops.hybrid.single_query_attention(query, k, v, scale, exclude)[0]


def _fake(query, k, v, scale, exclude):
    B, _, h, _ = k.shape
    G = query.shape[-3]
    dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
    return k.new_empty((B, G, h, v.shape[3])), k.new_empty((B, h, G), dtype=dtype)


def _fake_backward(grad_out, query, k, v, out, lse, scale, exclude, need_query, need_k, need_v):
    needs = ((query, need_query), (k, need_k), (v, need_v))
    return tuple(tensor.new_empty(tensor.shape if need else (0,)) for tensor, need in needs)


def _setup_context(ctx, inputs, output):
    query, k, v, ctx.scale, exclude = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(query, k, v, exclude, out, lse)


def _backward(ctx, grad_out, grad_lse):
    query, k, v, exclude, out, lse = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads = torch.ops.hybrid.single_query_attention_backward(
        grad_out, query, k, v, out, lse, ctx.scale, exclude, *needs
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None


def _flops(query, k, v, scale, exclude, **_):
    return 2 * query.shape[-3] * k.shape[0] * k.shape[1] * k.shape[2] * (k.shape[3] + v.shape[3])


def _flops_backward(grad_out, query, k, v, *_, **__):
    """Scores and the gradients of queries and keys on d; of weights and values on dv."""
    pairs = 2 * query.shape[-3] * k.shape[0] * k.shape[1] * k.shape[2]
    return pairs * (3 * k.shape[3] + 2 * v.shape[3])


def _check(query, k, v, scale, exclude):
    op = "single_query_attention"
    require(
        k.dim() == 4,
        f"{op}: k has shape {tuple(k.shape)}; expected 4 dimensions: (B, N, heads, head width)",
    )
    require(
        v.dim() == 4,
        f"{op}: v has shape {tuple(v.shape)}; expected 4 dimensions: (B, N, heads, value width)",
    )
    require(
        query.dim() in (3, 4),
        f"{op}: query has shape {tuple(query.shape)}; expected (G, heads, head width), or "
        "(B, G, heads, head width)",
    )
    require(
        k.is_floating_point(),
        f"{op}: k has {k.dtype}; expected float32, bfloat16, float16 or float64",
    )
    B, N, h, d = k.shape
    dv, G = v.shape[3], query.shape[-3]
    require(
        1 <= G <= MAX_QUERIES,
        f"{op}: query has {G} queries; expected 1 to {MAX_QUERIES}; use multiscale_attention for "
        "more",
    )
    require(h >= 1, f"{op}: k has no heads, shape {tuple(k.shape)}")
    for name, width in (("k", d), ("v", dv)):
        require(
            1 <= width <= MAX_HEAD_WIDTH,
            f"{op}: {name} has head width {width}; expected 1 to {MAX_HEAD_WIDTH}",
        )
    _check_tensor("v", v, k, (B, N, h, dv), "(B, N, heads, value width)")
    if query.dim() == 3:
        _check_tensor("query", query, k, (G, h, d), "(G, heads, head width)")
    else:
        _check_tensor("query", query, k, (B, G, h, d), "(B, G, heads, head width)")
    require(
        N >= 1 or B == 0,
        f"{op}: k holds no key, shape {tuple(k.shape)}; expected at least one token",
    )
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    if exclude is not None:
        check_exclude("single_query_attention", "k", exclude, k)


def check_exclude(op, name, exclude, tokens):
    """Refuse indices that do not fit the argument `name`, tokens (B, N, ...)."""
    B, N = tokens.shape[:2]
    require(
        exclude.dim() == 2 and exclude.shape[0] == B,
        f"{op}: exclude has shape {tuple(exclude.shape)}; expected ({B}, n) = (B, excluded tokens)",
    )
    require(
        exclude.dtype in (torch.int32, torch.int64),
        f"{op}: exclude holds no int32 or int64 indices but {exclude.dtype}; convert it with "
        ".to(torch.int64)",
    )
    require(
        exclude.device == tokens.device,
        f"{op}: exclude is on {exclude.device} but {name} is on {tokens.device}; move them to one "
        "device",
    )
    require(
        exclude.shape[1] < N or B == 0,
        f"{op}: exclude has {exclude.shape[1]} indices for each image of {N} tokens; expected "
        "fewer, so that a key is left",
    )


def _check_tensor(name, tensor, k, shape, meaning):
    require_tensor("single_query_attention", name, tensor, [shape], meaning, k.dtype, ("k", k))


def _check_backward(grad_out, query, k, v, out, lse, scale, exclude, need_query, need_k, need_v):
    _check(query, k, v, scale, exclude)
    shape = (k.shape[0], query.shape[-3], k.shape[2], v.shape[3])
    _check_tensor("grad_out", grad_out, k, shape, "(B, G, heads, value width)")
    _check_tensor("out", out, k, shape, "(B, G, heads, value width)")


register(
    "single_query_attention",
    module="single_query_attention",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("query", "k", "v"),
    flops=_flops,
)
register(
    "single_query_attention_backward",
    module="single_query_attention",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
