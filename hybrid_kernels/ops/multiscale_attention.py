"""Softmax attention over one to three segments of keys and values, with one joint softmax."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from ._registration import register, require, require_tensor

MAX_SEGMENTS = 3
MAX_HEAD_WIDTH = 128


def multiscale_attention(
    q: Tensor,
    ks: Sequence[Tensor] | Tensor,
    vs: Sequence[Tensor] | Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend from every query to the keys of all segments: ``softmax(scale * q K^T) V`` per head.

    The segments are never concatenated. One segment is plain multi-head attention: region
    attention, token mixing, cross-attention with keys of any number.

    On a CPU there are two regimes, and `multiscale_fits_cache` tells which. The rows of a small
    head stay in the cache, and those of the next one are fetched meanwhile. Those of a large one
    do not: its keys are read tile by tile, once for every panel of queries.

    Args:
        q: Queries ``(B, N, h, d)``, ``1 <= d <= 128``. float32, bfloat16, float16, or float64
            (CPU); any strides, fastest with a token's channels side by side.
        ks: Keys, 1 to 3 tensors ``(B, M_i, h, d)``, or a single one. The ``M_i`` may differ, and
            some may be zero.
        vs: Values, ``(B, M_i, h, dv)`` each, ``1 <= dv <= 128``; ``dv`` may differ from ``d``.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.

    Returns:
        ``(B, N, h, dv)``, contiguous, in ``q``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MSCSA ("Vision Backbone Enhancement via Multi-Stage Cross-Scale Attention"), Eq. 6 and
        7; MRL ("Learning to Mix with Attention and Convolutions"), Sec. 2.1, with one segment.
    """
    ks = [ks] if isinstance(ks, Tensor) else list(ks)
    vs = [vs] if isinstance(vs, Tensor) else list(vs)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.ops.hybrid.multiscale_attention(q, ks, vs, scale)[0]


def multiscale_fits_cache(queries: int, keys: int) -> bool:
    """Whether one head of `multiscale_attention` stays in a CPU's cache: the kernels' own rule.

    Args:
        queries: ``N`` of an image, at least 1.
        keys: Of all segments together, at least 1.
    """
    for name, number in (("queries", queries), ("keys", keys)):
        require(number >= 1, f"multiscale_fits_cache: {name} = {number}; expected at least 1")
    return _native.multiscale_attention_fits_cache(queries, keys)


def _fake(q, ks, vs, scale):
    B, N, h, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((B, N, h, vs[0].shape[3])), q.new_empty((B, h, N), dtype=dtype)


def _fake_backward(grad_out, q, ks, vs, out, lse, scale, need_q, need_ks, need_vs):
    def gradient(tensor, needed):
        return tensor.new_empty(tensor.shape if needed else (0,))

    return (
        gradient(q, need_q),
        [gradient(k, need) for k, need in zip(ks, need_ks, strict=True)],
        [gradient(v, need) for v, need in zip(vs, need_vs, strict=True)],
    )


def _setup_context(ctx, inputs, output):
    q, ks, vs, ctx.scale = inputs
    out, lse = output
    ctx.segments = len(ks)
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, out, lse, *ks, *vs)


def _backward(ctx, grad_out, grad_lse):
    q, out, lse, *segments = ctx.saved_tensors
    ks, vs = segments[: ctx.segments], segments[ctx.segments :]
    need_q, need_ks, need_vs, _ = ctx.needs_input_grad
    grad_q, grad_ks, grad_vs = torch.ops.hybrid.multiscale_attention_backward(
        grad_out, q, ks, vs, out, lse, ctx.scale, need_q, need_ks, need_vs
    )
    return (
        grad_q if need_q else None,
        [g if need else None for g, need in zip(grad_ks, need_ks, strict=True)],
        [g if need else None for g, need in zip(grad_vs, need_vs, strict=True)],
        None,
    )


def _flops(q, ks, vs, scale, **_):
    keys = sum(k.shape[1] for k in ks)
    return 2 * q.shape[0] * q.shape[1] * q.shape[2] * keys * (q.shape[3] + vs[0].shape[3])


def _flops_backward(grad_out, q, ks, vs, out, lse, scale, *_, **__):
    """Scores and dQ, dK on the width of keys; dP and dV on that of values."""
    pairs = 2 * q.shape[0] * q.shape[1] * q.shape[2] * sum(k.shape[1] for k in ks)
    return pairs * (3 * q.shape[3] + 2 * vs[0].shape[3])


def _check(q, ks, vs, scale):
    op = "multiscale_attention"
    require(
        q.dim() == 4,
        f"{op}: q has shape {tuple(q.shape)}; expected 4 dimensions: (B, N, heads, head width)",
    )
    require(
        q.is_floating_point(),
        f"{op}: q has {q.dtype}; expected float32, bfloat16, float16 or float64",
    )
    require(
        1 <= len(ks) <= MAX_SEGMENTS,
        f"{op}: ks has {len(ks)} segments; expected 1 to {MAX_SEGMENTS}; join some of them with "
        "torch.cat",
    )
    require(
        len(vs) == len(ks),
        f"{op}: vs has {len(vs)} segments; expected {len(ks)}, one for each of ks",
    )
    B, N, h, d = q.shape
    require(h >= 1, f"{op}: q has no heads, shape {tuple(q.shape)}")
    _check_width("q", d)
    require(
        vs[0].dim() == 4,
        f"{op}: vs[0] has shape {tuple(vs[0].shape)}; expected 4 dimensions: "
        "(B, keys, heads, head width)",
    )
    dv = vs[0].shape[3]
    _check_width("vs[0]", dv)
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    for i, (k, v) in enumerate(zip(ks, vs, strict=True)):
        keys = k.shape[1] if k.dim() == 4 else 0
        _check_tensor(f"ks[{i}]", k, q, (B, keys, h, d), "(B, keys, heads, head width)")
        _check_tensor(f"vs[{i}]", v, q, (B, keys, h, dv), "(B, keys, heads, head width)")
    require(
        sum(k.shape[1] for k in ks) >= 1 or B * N == 0,
        f"{op}: ks hold no key for the {N} queries; expected at least one",
    )


def _check_width(name, width):
    require(
        1 <= width <= MAX_HEAD_WIDTH,
        f"multiscale_attention: {name} has head width {width}; expected 1 to {MAX_HEAD_WIDTH}",
    )


def _check_tensor(name, tensor, q, shape, meaning):
    require_tensor("multiscale_attention", name, tensor, [shape], meaning, q.dtype, ("q", q))


def _check_backward(grad_out, q, ks, vs, out, lse, scale, need_q, need_ks, need_vs):
    _check(q, ks, vs, scale)
    shape = (*q.shape[:3], vs[0].shape[3])
    _check_tensor("grad_out", grad_out, q, shape, "(B, N, heads, value width)")
    _check_tensor("out", out, q, shape, "(B, N, heads, value width)")
    for name, needs in (("need_ks", need_ks), ("need_vs", need_vs)):
        require(
            len(needs) == len(ks),
            f"multiscale_attention_backward: {name} has {len(needs)} entries; expected one for "
            f"each of the {len(ks)} segments",
        )


register(
    "multiscale_attention",
    module="multiscale_attention",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("q", "ks", "vs"),
    flops=_flops,
)
register(
    "multiscale_attention_backward",
    module="multiscale_attention",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
