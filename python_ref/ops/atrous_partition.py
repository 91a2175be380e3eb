"""Atrous window partition and its inverse: ACC-ViT, supplement A.1, followed by a window split."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def atrous_partition(x: Tensor, window: int, dilation: int, fill: float = 0.0) -> Tensor:
    """Cut a feature map into the windows of its dilated sub-maps.

    The map is split into dilation**2 sub-maps, one for each phase (i mod d, j mod d), and every
    sub-map into windows of window x window slots. Window ((p*d + q)*nu + u)*nv + v, slot a*P + b
    holds pixel ((u*P + a)*d + p, (v*P + b)*d + q), with nu = ceil(H / (P*d)), nv = ceil(W / (P*d)).

    Args:
        x: feature map (B, H, W, C), any dtype, any size.
        window: window side P >= 1, in slots.
        dilation: distance d >= 1 between neighbouring slots, in pixels.
        fill: value of the slots that lie outside the map.

    Returns:
        Windows (B, d*d*nu*nv, P*P, C), contiguous, in x's dtype.

    Raises:
        ValueError: x is no map of rank 4, or window or dilation is below 1.
    """
    _check_partition(x, 4, "(B, H, W, C)", window, dilation)
    _, height, width, _ = x.shape
    side = window * dilation
    pad_bottom, pad_right = -height % side, -width % side
    if pad_bottom or pad_right:
        x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom), value=fill)
    return rearrange(
        x,
        "B (u a p) (v b q) C -> B (p q u v) (a b) C",
        u=(height + pad_bottom) // side,
        v=(width + pad_right) // side,
        a=window,
        b=window,
        p=dilation,
        q=dilation,
    ).contiguous()


def atrous_merge(windows: Tensor, height: int, width: int, window: int, dilation: int) -> Tensor:
    """Put the windows of `atrous_partition` back into a feature map; slots outside are dropped.

    Args:
        windows: (B, d*d*nu*nv, P*P, C) with nu = ceil(height / (P*d)), nv = ceil(width / (P*d)).
        height: rows of the map.
        width: columns of the map.
        window: window side P >= 1, in slots.
        dilation: distance d >= 1 between neighbouring slots, in pixels.

    Returns:
        Feature map (B, height, width, C), contiguous, in the dtype of windows.

    Raises:
        ValueError: the shape of windows does not follow from the other arguments.
    """
    _check_partition(windows, 4, "(B, windows, slots, C)", window, dilation)
    if height < 0 or width < 0:
        raise ValueError(f"height and width must not be negative, got {height} and {width}")
    side = window * dilation
    rows, columns = -(-height // side), -(-width // side)
    expected = (dilation**2 * rows * columns, window**2)
    if tuple(windows.shape[1:3]) != expected:
        raise ValueError(
            f"windows has {tuple(windows.shape[1:3])} windows and slots; a {height} x {width} map "
            f"with window {window} and dilation {dilation} has {expected}"
        )
    x = rearrange(
        windows,
        "B (p q u v) (a b) C -> B (u a p) (v b q) C",
        u=rows,
        v=columns,
        a=window,
        b=window,
        p=dilation,
        q=dilation,
    )
    return x[:, :height, :width].contiguous()


def _check_partition(x: Tensor, rank: int, shape: str, window: int, dilation: int) -> None:
    if x.ndim != rank:
        raise ValueError(f"expected a tensor {shape}, got shape {tuple(x.shape)}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
