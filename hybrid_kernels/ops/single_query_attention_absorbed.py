"""Single-query attention that projects its few queries and outputs instead of all tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ._registration import require
from .single_query_attention import MAX_QUERIES, check_exclude, single_query_attention
from .single_query_pool import MAX_CHANNELS, single_query_pool


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
    the queries and the value projection to the outputs: keys and values are then never built. Both
    forms are exact in real arithmetic; the cheaper one is taken, and `single_query_form` tells
    which, and what both cost. Absorbed, tokens of up to 128 channels are read by a kernel, once for
    every 16 pairs of a query and a head. With more channels, and outside float32 with more pairs,
    the two products and the softmax are torch's: products of 16 bits are faster there.

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
    form = single_query_form(G, h, x.shape[2], d, value_heads.shape[1], x.dtype)
    if not form.is_absorbed:
        k = F.linear(x, key_weight).unflatten(-1, (h, d))
        v = F.linear(x, value_weight, value_bias).unflatten(-1, (h, -1))
        return single_query_attention(query, k, v, scale, exclude)
    absorbed = torch.einsum("...ghd,hdc->...ghc", query, key_heads).flatten(-3, -2)
    pool = _pool_by_kernel if form.is_kernel else _pool_by_products
    mean = pool(absorbed, x, scale, exclude).unflatten(1, (G, h))
    out = torch.einsum("bghc,hec->bghe", mean, value_heads)
    return out if value_bias is None else out + value_bias.unflatten(0, (h, -1))


@dataclass(frozen=True)
class SingleQueryForm:
    """Which of two exact forms `single_query_attention_absorbed` takes, and what each costs."""

    is_absorbed: bool  # the projections move to queries and outputs; else the tokens are projected
    is_kernel: bool  # attention is a kernel of this library; else torch's products and softmax
    absorbed_cost: int  # multiply-adds per token
    projected_cost: int


def single_query_form(
    queries: int,
    heads: int,
    channels: int,
    d: int,
    dv: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> SingleQueryForm:
    """The form that `single_query_attention_absorbed` takes for a shape, the cheaper one.

    Absorbed, a token costs ``2 C h G`` multiply-adds; projected, ``(C + G) h (d + dv)`` and twice
    the memory. So the tokens stay as they are where ``2 C G <= (C + G) (d + dv)``.

    Args:
        queries: ``G``, 1 to 16.
        heads: ``h``.
        channels: ``C`` of the tokens.
        d: Width of a head's queries and keys.
        dv: Width of a head's values; ``d`` if ``None``.
        dtype: Of the tokens.
    """
    widths = d + (d if dv is None else dv)
    absorbed = 2 * channels * heads * queries
    projected = (channels + queries) * heads * widths
    is_absorbed = absorbed <= projected
    has_pool = channels <= MAX_CHANNELS
    takes_pairs = heads * queries <= MAX_QUERIES or dtype == torch.float32
    is_kernel = not is_absorbed or (has_pool and takes_pairs)
    return SingleQueryForm(is_absorbed, is_kernel, absorbed, projected)


def _pool_by_kernel(query, x, scale, exclude):
    means = [single_query_pool(q, x, scale, exclude) for q in query.split(MAX_QUERIES, dim=-2)]
    return means[0] if len(means) == 1 else torch.cat(means, dim=1)


def _pool_by_products(query, x, scale, exclude):
    if exclude is not None:
        check_exclude("single_query_attention_absorbed", "x", exclude, x)
    scores = (scale * query) @ x.mT
    if exclude is not None:
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        mask = mask.scatter(1, exclude.long(), True)
        scores = scores.masked_fill(mask[:, None, :], -torch.inf)
    return scores.softmax(dim=-1) @ x


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
