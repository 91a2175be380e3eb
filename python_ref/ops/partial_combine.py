"""Foreground and background tokens back in the order of the image, PartialFormer Eq. 5.7."""

import torch
from torch import Tensor


def partial_combine(x: Tensor, update: Tensor, foreground: Tensor, index: Tensor) -> Tensor:
    """Add one vector to the background tokens of an image and replace its foreground tokens.

    out[index] = foreground; out_i = x_i + update for all other tokens i.

    Args:
        x: tokens (B, N, C), any floating dtype, any strides.
        update: (B, C).
        foreground: (B, n, C), 1 <= n <= N.
        index: positions (B, n) of the foreground tokens, distinct, int32 or int64.

    Returns:
        out (B, N, C) in x's dtype.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, update, foreground, index)
    where = _where(index, x.shape[2])
    return (x + update.unsqueeze(1)).scatter(1, where, foreground.to(x.dtype))


def partial_combine_backward(
    grad: Tensor, index: Tensor, need_x: bool, need_update: bool, need_foreground: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `partial_combine`.

    dforeground = dout[index], dx = dout on the background and 0 on the foreground, dupdate = the
    sum of dx over tokens.

    Args:
        grad: gradient of out, (B, N, C).
        index: as in the forward.
        need_x, need_update, need_foreground: which gradients to compute.

    Returns:
        (dx, dupdate, dforeground) in grad's dtype; what is not needed has shape (0,).
    """
    where, none = _where(index, grad.shape[2]), grad.new_empty(0)
    background = grad.scatter(1, where, 0)
    return (
        background if need_x else none,
        background.sum(dim=1) if need_update else none,
        grad.gather(1, where) if need_foreground else none,
    )


def _where(index: Tensor, channels: int) -> Tensor:
    """index (B, n) -> (B, n, C) for gather and scatter."""
    return index.long().unsqueeze(-1).expand(-1, -1, channels)


def _check(x: Tensor, update: Tensor, foreground: Tensor, index: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be (B, N, C), got shape {tuple(x.shape)}")
    batch, number, channels = x.shape
    chosen = index.shape[1] if index.ndim == 2 else 0
    if tuple(index.shape) != (batch, chosen) or not 1 <= chosen <= number:
        raise ValueError(
            f"index must be (B, n) = ({batch}, n) with 1 <= n <= {number}, got {tuple(index.shape)}"
        )
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"index must be int32 or int64, got {index.dtype}")
    for name, tensor, meaning, expected in (
        ("update", update, "(B, C)", (batch, channels)),
        ("foreground", foreground, "(B, n, C)", (batch, chosen, channels)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {meaning} = {expected}, got {tuple(tensor.shape)}")
