"""Atrous window partition: a map cut into the windows of its dilated versions, and the inverse."""

import math

import torch
from torch import Tensor

from ._registration import register, require


def atrous_partition(x: Tensor, window: int, dilation: int, fill: float = 0.0) -> Tensor:
    """Cut a map into windows whose pixels lie ``dilation`` apart.

    Window ``((p*d + q)*nu + u)*nv + v``, slot ``a*P + b`` holds pixel
    ``((u*P + a)*d + p, (v*P + b)*d + q)``, with ``P = window``, ``d = dilation``,
    ``nu = ceil(H / (P*d))`` and ``nv = ceil(W / (P*d))``. Differentiable any number of times.

    Args:
        x: ``(B, H, W, C)``, any size and strides. float32, bfloat16, float16 or float64.
        window: Window side >= 1, in slots.
        dilation: Distance >= 1 between neighbouring slots, in pixels; 1 gives plain windows,
            ``H // window`` on a square map a grid.
        fill: Value of slots that lie outside the map.

    Returns:
        ``(B, d*d*nu*nv, window**2, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or range.

    Source: ACC-ViT ("Fusion of regional and sparse attention in Vision Transformers"), A.1.
    """
    return torch.ops.hybrid.atrous_partition(x, window, dilation, fill)


def atrous_merge(windows: Tensor, height: int, width: int, window: int, dilation: int) -> Tensor:
    """Put the windows of ``atrous_partition`` back into a map; slots outside the map are dropped.

    Args:
        windows: ``(B, d*d*nu*nv, window**2, C)`` with ``d = dilation``,
            ``nu = ceil(height / (window*d))`` and ``nv = ceil(width / (window*d))``; any strides.
            float32, bfloat16, float16 or float64.
        height: Rows of the map, >= 0.
        width: Columns of the map, >= 0.
        window: Window side >= 1, in slots.
        dilation: Distance >= 1 between neighbouring slots, in pixels.

    Returns:
        ``(B, height, width, C)``, contiguous, in ``windows``' dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or range.

    Source: as ``atrous_partition``.
    """
    return torch.ops.hybrid.atrous_merge(windows, height, width, window, dilation)


def _windows_shape(height: int, width: int, window: int, dilation: int) -> tuple[int, int]:
    side = window * dilation
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    return dilation**2 * rows * columns, window**2


def _fake_partition(x, window, dilation, fill):
    B, H, W, C = x.shape
    return x.new_empty(B, *_windows_shape(H, W, window, dilation), C)


def _fake_merge(windows, height, width, window, dilation):
    return windows.new_empty(windows.shape[0], height, width, windows.shape[3])


def _setup_partition(ctx, inputs, output):
    x, ctx.window, ctx.dilation, _ = inputs
    ctx.height, ctx.width = x.shape[1:3]


def _setup_merge(ctx, inputs, output):
    _, _, _, ctx.window, ctx.dilation = inputs


def _backward_partition(ctx, grad):
    merged = atrous_merge(grad, ctx.height, ctx.width, ctx.window, ctx.dilation)
    return merged, None, None, None


def _backward_merge(ctx, grad):
    return atrous_partition(grad, ctx.window, ctx.dilation), None, None, None, None


def _check_common(op, name, tensor, window, dilation):
    expected = "(B, H, W, C)" if name == "x" else "(B, windows, slots, C)"
    require(
        tensor.dim() == 4,
        f"{op}: {name} has shape {tuple(tensor.shape)}; expected 4 dimensions: {expected}",
    )
    require(
        tensor.is_floating_point(),
        f"{op}: {name} has {tensor.dtype}; expected float32, bfloat16, float16 or float64",
    )
    require(window >= 1, f"{op}: window = {window}; expected >= 1")
    require(dilation >= 1, f"{op}: dilation = {dilation}; expected >= 1")


def _check_partition(x, window, dilation, fill):
    op = "atrous_partition"
    _check_common(op, "x", x, window, dilation)
    largest = torch.finfo(x.dtype).max
    require(
        not math.isfinite(fill) or abs(fill) <= largest,
        f"{op}: fill = {fill} is too large for {x.dtype}; expected at most {largest}, or infinity",
    )


def _check_merge(windows, height, width, window, dilation):
    op = "atrous_merge"
    _check_common(op, "windows", windows, window, dilation)
    require(height >= 0, f"{op}: height = {height}; expected >= 0")
    require(width >= 0, f"{op}: width = {width}; expected >= 0")
    count, slots = _windows_shape(height, width, window, dilation)
    require(
        windows.shape[1] == count and windows.shape[2] == slots,
        f"{op}: windows has shape {tuple(windows.shape)}; expected (B, {count}, {slots}, C) for a "
        f"{height} x {width} map with window {window} and dilation {dilation}",
    )


register(
    "atrous_partition",
    module="atrous_partition",
    check=_check_partition,
    fake=_fake_partition,
    setup_context=_setup_partition,
    backward=_backward_partition,
)
register(
    "atrous_merge",
    module="atrous_partition",
    check=_check_merge,
    fake=_fake_merge,
    setup_context=_setup_merge,
    backward=_backward_merge,
)
