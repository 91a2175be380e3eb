"""Single-query attention that projects its few queries and outputs instead of all tokens."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._registration import register, require, require_tensor
from .single_query_attention import MAX_QUERIES, check_exclude, single_query_attention

MAX_CHANNELS = 128


def single_query_attention_absorbed(
    query: Tensor,
    x: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None = None,
    scale: float | None = None,
    exclude: Tensor | None = None,
) -> Tensor:
    """`single_query_attention` of projected tokens, without projecting them where that is cheaper.

    ``k = x key_weight^T`` and ``v = x value_weight^T + value_bias``. The key projection can move to
    the queries and the value projection to the outputs, which is exact in real arithmetic: keys and
    values are then never built, and the tokens are read once. `absorbs` decides, by cost; without
    it the tokens are projected.

    Args:
        query: ``(B, G, h, d)``, or ``(G, h, d)`` for queries that all images share; 1 to 16
            queries.
        x: Tokens ``(B, N, C)``, at least one. float32, bfloat16, float16, or float64 (CPU); any
            strides.
        key_weight: ``(h * d, C)``, head ``j`` in rows ``j * d`` and following. A bias of the keys
            would have no influence.
        value_weight: ``(h * dv, C)``, likewise.
        value_bias: ``(h * dv,)`` or ``None``.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.
        exclude: Indices ``(B, n)``, ``n < N``, int32 or int64, of tokens that are no keys; or
            ``None``.

    Returns:
        ``(B, G, h, dv)`` in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: PartialFormer ("Efficient Vision Transformer with Partial Attention"), Eq. 5.6; MCGA
        ("Multi-scale Convolutions Meet Group Attention"), Eq. 3.
    """
    _check_absorbed(query, x, key_weight, value_weight, value_bias)
    G, h, d = query.shape[-3:]
    scale = d**-0.5 if scale is None else scale
    key_heads, value_heads = (w.unflatten(0, (h, -1)) for w in (key_weight, value_weight))
    if not absorbs(h, G, x.shape[2], d, value_heads.shape[1]):
        k = F.linear(x, key_weight).unflatten(-1, (h, d))
        v = F.linear(x, value_weight, value_bias).unflatten(-1, (h, -1))
        return single_query_attention(query, k, v, scale, exclude)
    absorbed = torch.einsum("...ghd,hdc->...ghc", query, key_heads).flatten(-3, -2)
    mean = torch.ops.hybrid.single_query_pool(absorbed, x, scale, exclude)[0]
    out = torch.einsum("bghc,hec->bghe", mean.unflatten(1, (G, h)), value_heads)
    return out if value_bias is None else out + value_bias.unflatten(0, (h, -1))


def absorbs(heads: int, queries: int, channels: int, d: int, dv: int) -> bool:
    """Whether `single_query_attention_absorbed` leaves the tokens as they are.

    A token then costs ``2 C h G`` multiply-adds; projected, ``(C + G) h (d + dv)`` of them and
    twice the memory. The kernels take up to 16 pairs of a query and a head, and 128 channels.
    """
    fits = heads * queries <= MAX_QUERIES and channels <= MAX_CHANNELS
    return fits and 2 * channels * queries <= (channels + queries) * (d + dv)


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


def _check_absorbed(query, x, key_weight, value_weight, value_bias):
    """What the projections need; the ops check the rest."""
    op = "single_query_attention_absorbed"
    require(
        query.dim() in (3, 4),
        f"{op}: query has shape {tuple(query.shape)}; expected (G, heads, head width), or "
        "(B, G, heads, head width)",
    )
    require(
        x.dim() == 3,
        f"{op}: x has shape {tuple(x.shape)}; expected 3 dimensions: (B, N, channels)",
    )
    (h, d), C = query.shape[-2:], x.shape[2]
    require(
        tuple(key_weight.shape) == (h * d, C),
        f"{op}: key_weight has shape {tuple(key_weight.shape)}; expected {(h * d, C)} = "
        "(heads * head width, channels)",
    )
    rows = value_weight.shape[0] if value_weight.dim() == 2 else 0
    require(
        rows > 0 and h > 0 and rows % h == 0 and value_weight.shape[1] == C,
        f"{op}: value_weight has shape {tuple(value_weight.shape)}; expected ({h} * dv, {C}) = "
        "(heads * value width, channels)",
    )
    require(
        value_bias is None or tuple(value_bias.shape) == (rows,),
        f"{op}: value_bias has shape {None if value_bias is None else tuple(value_bias.shape)}; "
        f"expected ({rows},) = (heads * value width,)",
    )


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
