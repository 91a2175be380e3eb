"""1x1 convolutions of channel groups of different widths: MSCSA Sec. 3.3, Intra-FFN."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.precision import statistics_dtype


def grouped_pointwise(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """y_g = x_g W_g^T + b_g for consecutive channel groups g, of any widths.

    The same as one 1x1 convolution whose weight is block-diagonal.

    Args:
        x: map (B, H, W, sum of a_g), any floating dtype, any strides.
        weights: W_g (b_g, a_g) of every group.
        biases: b_g (b_g,) of every group.

    Returns:
        y (B, H, W, sum of b_g) in x's dtype.

    Raises:
        ValueError: weights and biases do not fit x or each other.
    """
    _check(x, weights, biases)
    groups = zip(_split(x, weights), weights, biases, strict=True)
    return torch.cat([F.linear(part, w.to(x.dtype), b.to(x.dtype)) for part, w, b in groups], -1)


def grouped_pointwise_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    need_x: bool,
    need_weights: bool,
    need_biases: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of `grouped_pointwise`, in float32 (float64 for float64).

    dx_g = dy_g W_g; dW_g = sum of dy_g^T x_g and db_g = sum of dy_g over images and pixels.

    Returns:
        (dx, [dW_g], [db_g]); what is not needed has shape (0,).
    """
    _check(x, weights, biases)
    wide = statistics_dtype(x)
    none = x.new_empty(0, dtype=wide)
    grads = grad.to(wide).split([weight.shape[0] for weight in weights], dim=-1)
    grad_x, grad_weights, grad_biases = x.new_empty(0), [none] * len(grads), [none] * len(grads)
    if need_x:
        pairs = zip(grads, weights, strict=True)
        grad_x = torch.cat([part @ weight.to(wide) for part, weight in pairs], dim=-1).to(x.dtype)
    if need_weights:
        parts = _split(x.to(wide), weights)
        grad_weights = [
            grad_part.flatten(0, 2).mT @ part.flatten(0, 2)
            for grad_part, part in zip(grads, parts, strict=True)
        ]
    if need_biases:
        grad_biases = [part.sum(dim=(0, 1, 2)) for part in grads]
    return grad_x, grad_weights, grad_biases


def _split(x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return x.split([weight.shape[1] for weight in weights], dim=-1)


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    shapes = [tuple(weight.shape) for weight in weights]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"weights must be one (b_g, a_g) for each group, got shapes {shapes}")
    width = sum(shape[1] for shape in shapes)
    if x.ndim != 4 or x.shape[-1] != width:
        raise ValueError(f"x must be (B, H, W, {width}) for these weights, got {tuple(x.shape)}")
    expected = [(shape[0],) for shape in shapes]
    if [tuple(bias.shape) for bias in biases] != expected:
        raise ValueError(
            f"biases must have shapes {expected}, got {[tuple(b.shape) for b in biases]}"
        )
