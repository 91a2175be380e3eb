"""Local attention with generated weights: C-MHSA of EMSNet (thesis Sec. 3.3, Eq. 3.9 and 3.10).

Also the outlook attention of VOLO, whose zero padding, softmax axis and plain fold it takes over.
Nothing compares queries with keys: a k x k window's k^2 x k^2 weights come from its centre.
"""

import torch
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def conv_attention(
    v: Tensor,
    logits: Tensor,
    scale: float,
    kernel: int = 3,
    stride: int = 2,
    padding: int = 1,
) -> Tensor:
    """Mix the slots of every window with its own weights, and add windows up where they overlap.

    Window (i, j) has k * k slots, row-major; slot s is pixel pos(i, j, s) =
    (stride * i - padding + s div k, stride * j - padding + s mod k). Per head, window and output
    slot p: A[p, :] = softmax_q(scale * logits[p, q]), o_p = sum_q A[p, q] * v[pos(q)], and y is
    the sum of the o_p at their pixels. Slots outside the map have value zero but keep their share
    of the softmax; what would land there is dropped, and overlaps are not averaged.

    Args:
        v: values (B, H, W, C), any floating dtype, any strides.
        logits: (B, H2, W2, h, k*k, k*k), output slot before input slot, for the
            H2 = (H + 2 * padding - k) div stride + 1 rows of windows, and W2 columns alike; head n
            has the n-th C / h channels.
        scale: factor of the logits; 1 in EMSNet, (C / h)**-0.5 in VOLO.
        kernel: window side k.
        stride: distance of windows, in pixels.
        padding: zeros on every side of the map.

    Returns:
        y (B, H, W, C) in v's dtype.

    Raises:
        ValueError: shapes do not fit, or the map is empty.
    """
    _check(v, logits, kernel, stride, padding)
    height, width = v.shape[1:3]
    positions = _positions(height, width, kernel, stride, padding, v.device)
    weights = (scale * logits.flatten(1, 2)).softmax(dim=-1)
    out = weights @ _split_heads(_take(v, positions), logits.shape[3])
    return _add(_merge_heads(out), positions, height, width)


def conv_attention_backward(
    grad_out: Tensor,
    v: Tensor,
    logits: Tensor,
    scale: float,
    kernel: int,
    stride: int,
    padding: int,
    need_v: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `conv_attention`; the weights A are computed again.

    dv is the forward with p and q exchanged. Per window and head,
    dA[p, q] = <dy[pos(p)], v[pos(q)]>, zero if a slot is outside the map, and
    dlogits[p, q] = scale * A[p, q] * (dA[p, q] - sum_q' A[p, q'] dA[p, q']): rows p outside are
    zero, columns q outside are not. Computed in float32 (float64 for float64).

    Args:
        grad_out: gradient of y, (B, H, W, C).
        v, logits, scale, kernel, stride, padding: as in the forward.
        need_v, need_logits: which gradients to compute.

    Returns:
        (dv, dlogits) in the dtypes of the inputs; what is not needed has shape (0,).
    """
    _check(v, logits, kernel, stride, padding)
    (height, width), heads, wide = v.shape[1:3], logits.shape[3], statistics_dtype(v)
    positions = _positions(height, width, kernel, stride, padding, v.device)
    weights = (scale * logits.flatten(1, 2).to(wide)).softmax(dim=-1)
    grad = _split_heads(_take(grad_out.to(wide), positions), heads)
    grad_v, grad_logits = v.new_empty(0), logits.new_empty(0)
    if need_v:
        grad_v = _add(_merge_heads(weights.mT @ grad), positions, height, width).to(v.dtype)
    if need_logits:
        grad_weights = grad @ _split_heads(_take(v.to(wide), positions), heads).mT
        row_dot = (weights * grad_weights).sum(dim=-1, keepdim=True)
        grad_logits = scale * weights * (grad_weights - row_dot)
        grad_logits = grad_logits.unflatten(1, logits.shape[1:3]).to(logits.dtype)
    return grad_v, grad_logits


def windows(size: int, kernel: int, stride: int, padding: int) -> int:
    """Windows along an axis of `size` pixels, as in a convolution."""
    return (size + 2 * padding - kernel) // stride + 1


def _positions(
    height: int, width: int, kernel: int, stride: int, padding: int, device: torch.device
) -> Tensor:
    """Flat pixel of every (window, slot), (H2 * W2, k*k); height * width for slots outside."""

    def along(size: int) -> Tensor:
        first = stride * torch.arange(windows(size, kernel, stride, padding), device=device)
        return first[:, None] - padding + torch.arange(kernel, device=device)

    rows, columns = along(height)[:, None, :, None], along(width)[None, :, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return (rows * width + columns).where(inside, height * width).reshape(-1, kernel * kernel)


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Unfold: map (B, H, W, C) -> slots (B, windows, k*k, C), zero outside the map."""
    pixels = x.flatten(1, 2)
    outside = pixels.new_zeros(x.shape[0], 1, x.shape[3])
    return torch.cat([pixels, outside], dim=1)[:, positions]


def _add(slots: Tensor, positions: Tensor, height: int, width: int) -> Tensor:
    """Fold: slots (B, windows, k*k, C) -> map (B, H, W, C), summed where windows overlap."""
    pixels = slots.new_zeros(slots.shape[0], height * width + 1, slots.shape[3])
    pixels = pixels.index_add(1, positions.flatten(), slots.flatten(1, 2))
    return pixels[:, :-1].unflatten(1, (height, width))


def _split_heads(slots: Tensor, heads: int) -> Tensor:
    """(B, windows, k*k, C) -> (B, windows, h, k*k, C / h)."""
    return slots.unflatten(-1, (heads, slots.shape[-1] // heads)).transpose(2, 3)


def _merge_heads(slots: Tensor) -> Tensor:
    """(B, windows, h, k*k, C / h) -> (B, windows, k*k, C)."""
    return slots.transpose(2, 3).flatten(-2)


def _check(v: Tensor, logits: Tensor, kernel: int, stride: int, padding: int) -> None:
    if v.ndim != 4 or 0 in v.shape[1:]:
        raise ValueError(f"v must be (B, H, W, C) with H, W, C > 0, got shape {tuple(v.shape)}")
    if kernel < 1 or stride < 1 or not 0 <= padding < kernel:
        raise ValueError(
            "kernel and stride must be at least 1 and padding in 0..kernel - 1, got "
            f"kernel={kernel}, stride={stride}, padding={padding}"
        )
    grid = [windows(size, kernel, stride, padding) for size in v.shape[1:3]]
    if min(grid) < 1:
        raise ValueError(
            f"a {v.shape[1]} x {v.shape[2]} map with padding {padding} holds no {kernel} x "
            f"{kernel} window; use a larger map or more padding"
        )
    heads = logits.shape[3] if logits.ndim == 6 else 1
    expected = (v.shape[0], *grid, heads, kernel**2, kernel**2)
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"logits must be (B, H2, W2, h, k*k, k*k) = {expected} for v {tuple(v.shape)}, got "
            f"{tuple(logits.shape)}"
        )
    if heads < 1 or v.shape[3] % heads:
        raise ValueError(f"the heads of logits must divide v's {v.shape[3]} channels, got {heads}")
