"""Maps averaged to one grid and concatenated, in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._registration import register, require, require_tensor

MAX_MAPS = 8


def pool_cat(xs: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Adaptive average pooling of every map to height x width, side by side on channels.

    Row ``i`` of the grid averages rows ``floor(i * H_k / height)`` to
    ``ceil((i + 1) * H_k / height) - 1`` of map ``k``; columns alike. Windows overlap where the
    sizes do not divide, and repeat pixels where the grid is the larger one.

    Args:
        xs: 1 to 8 maps ``(B, H_k, W_k, C_k)`` of one dtype, only the batch may be empty. float32,
            bfloat16, float16, or float64 (CPU); any strides, fastest with a pixel's channels side
            by side.
        height: Rows of the grid, at least 1.
        width: Columns of the grid, at least 1.

    Returns:
        ``(B, height, width, sum of C_k)``, contiguous, in the dtype of the maps.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MSCSA ("Vision Backbone Enhancement via Multi-Stage Cross-Scale Attention"), Sec. 3.1;
        TopFormer's pyramid pooling.
    """
    require(len(xs) > 0, "pool_cat: xs has no map; expected 1 to 8")  # else torch finds no backend
    return torch.ops.hybrid.pool_cat(xs, height, width)


def _channels(xs):
    return sum(x.shape[3] for x in xs)


def _fake(xs, height, width):
    return xs[0].new_empty((xs[0].shape[0], height, width, _channels(xs)))


def _fake_backward(grad, xs, height, width, need_xs):
    return [x.new_empty(x.shape if need else (0,)) for x, need in zip(xs, need_xs, strict=True)]


def _setup_context(ctx, inputs, output):
    xs, *ctx.size = inputs
    ctx.save_for_backward(*xs)


def _backward(ctx, grad):
    need_xs = ctx.needs_input_grad[0]
    grads = torch.ops.hybrid.pool_cat_backward(grad, ctx.saved_tensors, *ctx.size, need_xs)
    return [g if need else None for g, need in zip(grads, need_xs, strict=True)], None, None


def _flops(xs, height, width, **_):
    """An addition per pixel; that windows may share pixels is not counted."""
    return sum(x.numel() for x in xs)


def _flops_backward(grad, xs, height, width, need_xs, **_):
    return sum(x.numel() for x, need in zip(xs, need_xs, strict=True) if need)


def _check(xs, height, width):
    op = "pool_cat"
    require(
        1 <= len(xs) <= MAX_MAPS,
        f"{op}: xs has {len(xs)} maps; expected 1 to {MAX_MAPS}; join further ones with torch.cat",
    )
    for i, x in enumerate(xs):
        require(
            x.dim() == 4 and all(size >= 1 for size in x.shape[1:]),
            f"{op}: xs[{i}] has shape {tuple(x.shape)}; expected (B, H, W, C) with H, W and C at "
            "least 1",
        )
        batch = xs[0].shape[0]
        require(
            x.shape[0] == batch,
            f"{op}: xs[{i}] has shape {tuple(x.shape)}; expected a batch of {batch}, as xs[0]",
        )
        require(
            x.is_floating_point(),
            f"{op}: xs[{i}] has {x.dtype}; expected float32, bfloat16, float16 or float64",
        )
        meaning = "(B, H, W, C)"
        require_tensor(op, f"xs[{i}]", x, [x.shape], meaning, xs[0].dtype, ("xs[0]", xs[0]))
    require(height >= 1, f"{op}: height = {height}; expected 1 or more")
    require(width >= 1, f"{op}: width = {width}; expected 1 or more")


def _check_backward(grad, xs, height, width, need_xs):
    _check(xs, height, width)
    shape = (xs[0].shape[0], height, width, _channels(xs))
    meaning = "(B, height, width, channels)"
    require_tensor("pool_cat", "grad", grad, [shape], meaning, xs[0].dtype, ("xs[0]", xs[0]))
    require(
        len(need_xs) == len(xs),
        f"pool_cat_backward: need_xs has {len(need_xs)} entries; expected one for each of the "
        f"{len(xs)} maps",
    )


register(
    "pool_cat",
    module="pool_cat",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast_widest=("xs",),
    flops=_flops,
)
register(
    "pool_cat_backward",
    module="pool_cat",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
