"""Atrous window attention: softmax attention in the windows of a dilated feature map."""

import math

import torch
from torch import Tensor

from ._registration import register, require

MAX_BRANCHES, MAX_WINDOW, MAX_HEAD_WIDTH = 8, 16, 128


def atrous_attention(
    qkv: Tensor,
    bias: Tensor | None,
    dilations: list[int],
    window: int = 7,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention inside the windows of a map and of its dilated versions, one per branch.

    Branch ``k`` splits the map into ``dilations[k]**2`` sub-maps (pixels of equal phase) and each
    sub-map into windows of ``window`` x ``window``; every pixel attends within its window. Windows
    may reach beyond the map: what lies outside is neither query nor key.

    Args:
        qkv: ``(B, H, W, branches, 3, heads, head width)``: queries, keys and values. float32,
            bfloat16, float16, or float64 (CPU); any strides; up to 8 branches, width 1 to 128.
        bias: ``(branches, (2*window - 1)**2, heads)`` relative-position table, row-major in
            query minus key, in sub-map steps; or ``None``. float32 (float64 beside float64);
            a 16-bit table is converted.
        dilations: One rate >= 1 per branch. ``[1]`` is plain window attention; ``[H // window]``
            on a square map is grid attention.
        window: Window side, 1 to 16.
        scale: Factor of the scores; ``head width ** -0.5`` if ``None``.

    Returns:
        ``(B, H, W, branches, heads, head width)``, contiguous, in ``qkv``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: ACC-ViT ("Fusion of regional and sparse attention in Vision Transformers"), Sec. 2.1
    and A.1.
    """
    if bias is not None and bias.dtype in (torch.bfloat16, torch.float16):
        bias = bias.float()
    if scale is None:
        scale = qkv.shape[-1] ** -0.5
    return torch.ops.hybrid.atrous_attention(qkv, bias, dilations, window, scale)[0]


def _fake(qkv, bias, dilations, window, scale):
    B, H, W, n, _, h, e = qkv.shape
    lse_dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return qkv.new_empty(B, H, W, n, h, e), qkv.new_empty(B, H, W, n, h, dtype=lse_dtype)


def _fake_backward(grad_out, qkv, bias, out, lse, dilations, window, scale, need_qkv, need_bias):
    grad_qkv = qkv.new_empty(qkv.shape if need_qkv else (0,))
    offsets = (2 * window - 1) ** 2
    shape = (qkv.shape[3], offsets, qkv.shape[5]) if need_bias else (0,)
    return grad_qkv, qkv.new_empty(shape, dtype=lse.dtype)


def _setup_context(ctx, inputs, output):
    qkv, bias, ctx.dilations, ctx.window, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, bias, out, lse)


def _backward(ctx, grad_out, _grad_lse):
    qkv, bias, out, lse = ctx.saved_tensors
    need_qkv, need_bias = ctx.needs_input_grad[:2]
    grad_qkv, grad_bias = torch.ops.hybrid.atrous_attention_backward(
        grad_out, qkv, bias, out, lse, ctx.dilations, ctx.window, ctx.scale, need_qkv, need_bias
    )
    return grad_qkv if need_qkv else None, grad_bias if need_bias else None, None, None, None


def score_count(shape: tuple[int, ...], dilations: list[int], window: int) -> int:
    """Number of (query, key) pairs of one head and image, summed over branches."""

    def squares(length: int, d: int) -> int:
        # A window holds rows x columns valid slots; the sum of its squares separates by axis.
        sizes = [(length - phase + d - 1) // d for phase in range(min(d, length))]
        return sum((s // window) * window**2 + (s % window) ** 2 for s in sizes)

    return sum(squares(shape[1], d) * squares(shape[2], d) for d in dilations)


def _flops(qkv, bias, dilations, window, scale, **_):
    pairs = score_count(qkv.shape, dilations, window)
    return 4 * qkv.shape[0] * qkv.shape[5] * qkv.shape[6] * pairs  # scores, and their values


def _flops_backward(grad_out, qkv, bias, out, lse, dilations, window, scale, *_, **__):
    return _flops(qkv, bias, dilations, window, scale) * 5 // 2  # five products instead of two


def _check(qkv, bias, dilations, window, scale):
    op = "atrous_attention"
    require(
        qkv.dim() == 7 and qkv.shape[4] == 3,
        f"{op}: qkv has shape {tuple(qkv.shape)}; expected "
        "(B, H, W, branches, 3, heads, head width)",
    )
    n, h, e = qkv.shape[3], qkv.shape[5], qkv.shape[6]
    require(
        qkv.is_floating_point(),
        f"{op}: qkv has {qkv.dtype}; expected float32, bfloat16, float16 or float64",
    )
    require(1 <= n <= MAX_BRANCHES, f"{op}: qkv has {n} branches; expected 1 to {MAX_BRANCHES}")
    require(h >= 1, f"{op}: qkv has no heads, shape {tuple(qkv.shape)}")
    require(
        1 <= e <= MAX_HEAD_WIDTH,
        f"{op}: qkv has head width {e}; expected 1 to {MAX_HEAD_WIDTH}",
    )
    require(
        len(dilations) == n and all(d >= 1 for d in dilations),
        f"{op}: dilations = {list(dilations)}; expected one rate >= 1 for each of the {n} "
        "branches of qkv",
    )
    require(
        1 <= window <= MAX_WINDOW,
        f"{op}: window = {window}; expected 1 to {MAX_WINDOW}; for larger windows use "
        "scaled_dot_product_attention on atrous_partition",
    )
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    if bias is None:
        return
    expected = (n, (2 * window - 1) ** 2, h)
    require(
        tuple(bias.shape) == expected,
        f"{op}: bias has shape {tuple(bias.shape)}; expected {expected} = "
        "(branches, (2 window - 1)^2, heads)",
    )
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    require(bias.dtype == dtype, f"{op}: bias has {bias.dtype}; expected {dtype}")
    require(
        bias.device == qkv.device,
        f"{op}: bias is on {bias.device} but qkv is on {qkv.device}; move them to one device",
    )


def _check_backward(grad_out, qkv, bias, out, lse, dilations, window, scale, *_):
    _check(qkv, bias, dilations, window, scale)
    require(
        grad_out.shape == out.shape == (*qkv.shape[:4], *qkv.shape[5:]),
        f"atrous_attention: grad_out has shape {tuple(grad_out.shape)} and out "
        f"{tuple(out.shape)}; expected (B, H, W, branches, heads, head width)",
    )


register(
    "atrous_attention",
    module="atrous_attention",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("qkv",),
    flops=_flops,
)
register(
    "atrous_attention_backward",
    module="atrous_attention",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
