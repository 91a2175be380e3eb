"""The two coarser scales of multi-scale attention, MSCSA Sec. 3.2, Eq. 3."""

from torch import Tensor

from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype

# Side and stride of the two depthwise kernels.
_SCALES = ((3, 2), (5, 3))


def downsample_pair(
    x: Tensor, weight3: Tensor, weight5: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Depthwise 3x3 with stride 2 and depthwise 5x5 with stride 3 of one map, without bias.

    With scale and shift, the folded norm before them, both see scale * x + shift. The zero padding
    stays zero: the shift belongs to the pixels of the map alone.

    Args:
        x: map (B, H, W, C), any floating dtype, any strides.
        weight3: kernel (3, 3, C), padding 1.
        weight5: kernel (5, 5, C), padding 2.
        scale, shift: (C,) each, or both None.

    Returns:
        x1 (B, ceil(H / 2), ceil(W / 2), C) and x2 (B, ceil(H / 3), ceil(W / 3), C), in x's dtype.

    Raises:
        ValueError: a shape does not fit, or only one of scale and shift is given.
    """
    _check(x, weight3, weight5, scale, shift)
    normed = _normed(x, scale, shift)
    x1, x2 = (
        depthwise(normed, weight, None, stride)
        for weight, (_, stride) in zip((weight3, weight5), _SCALES, strict=True)
    )
    return x1, x2


def downsample_pair_backward(
    grad1: Tensor,
    grad2: Tensor,
    x: Tensor,
    weight3: Tensor,
    weight5: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    need_x: bool,
    need_weights: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `downsample_pair`, in float32 (float64 for float64).

    The normed map x^ receives the transposed stencils of both outputs; dx = scale * dx^,
    dscale = sum dx^ * x and dshift = sum dx^ over images and pixels. dweight[a, b] is the sum of
    gradient times tap.

    Returns:
        (dx, dweight3, dweight5, dscale, dshift); what is not needed has shape (0,).
    """
    _check(x, weight3, weight5, scale, shift)
    wide = statistics_dtype(x)
    none, none_parameter = x.new_empty(0), x.new_empty(0, dtype=wide)
    values, grads = x.to(wide), (grad1.to(wide), grad2.to(wide))
    normed = _normed(values, scale, shift)
    grad_weights = [none_parameter, none_parameter]
    if need_weights:
        grad_weights = [
            depthwise_backward_weight(grad, normed, side, stride)
            for grad, (side, stride) in zip(grads, _SCALES, strict=True)
        ]
    grad_x, grad_scale, grad_shift = none, none_parameter, none_parameter
    has_affine = scale is not None
    if need_x or (need_affine and has_affine):
        grad_normed = sum(
            depthwise_backward_input(grad, weight.to(wide), *x.shape[1:3], stride)
            for grad, weight, (_, stride) in zip(grads, (weight3, weight5), _SCALES, strict=True)
        )
        if need_x:
            grad_x = (scale * grad_normed if has_affine else grad_normed).to(x.dtype)
        if need_affine and has_affine:
            grad_scale = (grad_normed * values).sum(dim=(0, 1, 2))
            grad_shift = grad_normed.sum(dim=(0, 1, 2))
    return grad_x, *grad_weights, grad_scale, grad_shift


def _normed(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else (scale * x + shift).to(x.dtype)


def _check(
    x: Tensor, weight3: Tensor, weight5: Tensor, scale: Tensor | None, shift: Tensor | None
) -> None:
    check_depthwise(x, weight3, 3, "weight3")
    check_depthwise(x, weight5, 5, "weight5")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together, or both be None")
    for name, factor in (("scale", scale), ("shift", shift)):
        if factor is not None and tuple(factor.shape) != (x.shape[-1],):
            raise ValueError(f"{name} must be (C,) = ({x.shape[-1]},), got {tuple(factor.shape)}")
