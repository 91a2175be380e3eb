"""Window attention with one abstract token per window, whose output summarises the window."""

import math

import torch
from torch import Tensor

from ._maps import parameter_dtype, widened
from ._registration import register, require, require_tensor

MAX_WINDOW, MAX_HEAD_WIDTH = 16, 128


def abstract_token_attention(
    qkv: Tensor,
    token: Tensor,
    window: int = 7,
    scale: float | None = None,
    pad_kv: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Multi-head attention among the pixels of every window and a token that all windows share.

    The map is cut into windows of ``window`` x ``window``; the last ones may reach beyond it at
    the bottom and at the right. What lies outside is no query, and no key either unless
    ``pad_kv`` gives it a key and a value. Windows are numbered row by row.

    Args:
        qkv: Queries, keys and values ``(B, H, W, 3, h, d)``, ``1 <= d <= 128``. float32,
            bfloat16, float16, or float64 (CPU); any strides.
        token: Query, key and value ``(3, h, d)`` of the abstract token. float32 (float64 beside
            float64), rounded to ``qkv``'s dtype before use; a 16-bit one is converted.
        window: Window side, 1 to 16.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.
        pad_kv: Key and value ``(2, h, d)`` of every pixel outside the map, dtype as ``token``
            (in Swin, zeros that went through the linear layer); or ``None`` to mask them.

    Returns:
        The pixels' output ``(B, H, W, h, d)`` and the tokens' ``(B, windows, h, d)``, with
        ``windows = ceil(H / window) * ceil(W / window)``; both contiguous, in ``qkv``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MAT ("Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object
    Recognition"), Sec. 4.3.1, Eq. 4.1 to 4.3.
    """
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    token, pad_kv = widened(token), widened(pad_kv)
    return torch.ops.hybrid.abstract_token_attention(qkv, token, window, scale, pad_kv)[:2]


def window_counts(height: int, width: int, window: int) -> tuple[int, int]:
    """Windows below each other and side by side."""
    return (height + window - 1) // window, (width + window - 1) // window


def _fake(qkv, token, window, scale, pad_kv):
    B, H, W, _, h, d = qkv.shape
    down, across = window_counts(H, W, window)
    return (
        qkv.new_empty(B, H, W, h, d),
        qkv.new_empty(B, down * across, h, d),
        qkv.new_empty(B, down * across, h, 1 + window**2, dtype=parameter_dtype(qkv)),
    )


def _fake_backward(
    grad_out,
    grad_summary,
    qkv,
    token,
    pad_kv,
    out,
    summary,
    lse,
    dq_extra,
    window,
    scale,
    need_qkv,
    need_token,
    need_pad_kv,
):
    return (
        qkv.new_empty(qkv.shape if need_qkv else (0,)),
        token.new_empty(token.shape if need_token else (0,)),
        token.new_empty(pad_kv.shape if need_pad_kv and pad_kv is not None else (0,)),
    )


def _setup_context(ctx, inputs, output):
    qkv, token, ctx.window, ctx.scale, pad_kv = inputs
    out, summary, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(qkv, token, pad_kv, out, summary, lse)


def _backward(ctx, grad_out, grad_summary, _grad_lse):
    need_qkv, need_token, _, _, need_pad_kv = ctx.needs_input_grad
    grad_qkv, grad_token, grad_pad_kv = torch.ops.hybrid.abstract_token_attention_backward(
        grad_out,
        grad_summary,
        *ctx.saved_tensors,
        None,
        ctx.window,
        ctx.scale,
        need_qkv,
        need_token,
        need_pad_kv,
    )
    return (
        grad_qkv if need_qkv else None,
        grad_token if need_token else None,
        None,
        None,
        grad_pad_kv if need_pad_kv else None,
    )


def pair_count(height: int, width: int, window: int, masked: bool) -> int:
    """(Query, key) pairs of one image and head."""
    down, across = window_counts(height, width, window)
    if not masked:
        return (height * width + down * across) * (1 + window**2)

    def powers(length: int, count: int) -> tuple[int, int]:  # sums over one axis's windows
        last = length - (count - 1) * window
        return length, (count - 1) * window**2 + last**2

    if height * width == 0:
        return 0
    rows, row_squares = powers(height, down)
    cols, col_squares = powers(width, across)
    return row_squares * col_squares + 2 * rows * cols + down * across  # (1 + pixels)^2 each


def _flops(qkv, token, window, scale, pad_kv, **_):
    pairs = pair_count(qkv.shape[1], qkv.shape[2], window, pad_kv is None)
    return 4 * qkv.shape[0] * qkv.shape[4] * qkv.shape[5] * pairs  # scores, and their values


def _flops_backward(
    grad_out, grad_summary, qkv, token, pad_kv, out, summary, lse, dq_extra, window, scale, *_, **__
):
    return _flops(qkv, token, window, scale, pad_kv) * 5 // 2  # five products instead of two


def _check(qkv, token, window, scale, pad_kv):
    op = "abstract_token_attention"
    require(
        qkv.dim() == 6 and qkv.shape[3] == 3,
        f"{op}: qkv has shape {tuple(qkv.shape)}; expected (B, H, W, 3, heads, head width)",
    )
    require(
        qkv.is_floating_point(),
        f"{op}: qkv has {qkv.dtype}; expected float32, bfloat16, float16 or float64",
    )
    h, d = qkv.shape[4:]
    require(h >= 1, f"{op}: qkv has no heads, shape {tuple(qkv.shape)}")
    require(
        1 <= d <= MAX_HEAD_WIDTH,
        f"{op}: qkv has head width {d}; expected 1 to {MAX_HEAD_WIDTH}",
    )
    dtype, other = parameter_dtype(qkv), ("qkv", qkv)
    require_tensor(op, "token", token, [(3, h, d)], "(3, heads, head width)", dtype, other)
    require(1 <= window <= MAX_WINDOW, f"{op}: window = {window}; expected 1 to {MAX_WINDOW}")
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    if pad_kv is not None:
        require_tensor(op, "pad_kv", pad_kv, [(2, h, d)], "(2, heads, head width)", dtype, other)


def _check_backward(
    grad_out, grad_summary, qkv, token, pad_kv, out, summary, lse, dq_extra, window, scale, *_
):
    _check(qkv, token, window, scale, pad_kv)
    B, H, W, _, h, d = qkv.shape
    down, across = window_counts(H, W, window)
    map_shape, summary_shape = (B, H, W, h, d), (B, down * across, h, d)
    tensors = [
        ("grad_out", grad_out, map_shape, "(B, H, W, heads, head width)"),
        ("out", out, map_shape, "(B, H, W, heads, head width)"),
        ("grad_summary", grad_summary, summary_shape, "(B, windows, heads, head width)"),
        ("summary", summary, summary_shape, "(B, windows, heads, head width)"),
    ]
    if dq_extra is not None:
        tensors.append(("dq_extra", dq_extra, map_shape, "(B, H, W, heads, head width)"))
    for name, tensor, shape, meaning in tensors:
        require_tensor(
            "abstract_token_attention", name, tensor, [shape], meaning, qkv.dtype, ("qkv", qkv)
        )


register(
    "abstract_token_attention",
    module="abstract_token_attention",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("qkv",),
    flops=_flops,
)
register(
    "abstract_token_attention_backward",
    module="abstract_token_attention",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
