"""Patch embedding by pooling, and the 1x1 convolution of what was pooled."""

import torch
from torch import Tensor

from ._maps import parameter_dtype, require_like, require_map, require_pixels
from ._registration import register, require, require_tensor

MAX_PATCH = 16


def patch_embed(
    x: Tensor, weight: Tensor, patch: int, kind: str, pool_mode: str = "ceil"
) -> Tensor:
    """Pool disjoint patches of ``patch**2`` pixels, then mix channels: ``z[t] = weight pool_t(x)``.

    Patch ``t`` covers rows ``t * patch`` to ``min((t + 1) * patch, H) - 1``: the last one may be
    cut by the border. An average divides by the pixels that exist. Of equal maxima the gradient
    goes to the first, row by row, and NaN is larger than every number, as in PyTorch.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, so that channel slices of a larger map need no copy.
        weight: ``(C', C)`` in ``x``'s dtype.
        patch: Side of a patch, 1 to 16.
        kind: ``"max"`` or ``"avg"``.
        pool_mode: ``"ceil"`` pools the cut patches too, ``"floor"`` leaves them out.

    Returns:
        ``(B, ceil(H / patch), ceil(W / patch), C')``, contiguous, in ``x``'s dtype; rounded down
        with ``"floor"``.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: EMSNet ("Efficient Vision Transformers with Multi-Scale and Partial Attentions"), Sec.
        3.3, the patch embeddings of both branches.
    """
    return torch.ops.hybrid.patch_embed(x, weight, patch, kind, pool_mode)[0]


def _grid(size, patch, pool_mode):
    further = patch - 1 if pool_mode == "ceil" else 0
    return tuple((pixels + further) // patch for pixels in size)


def _fake(x, weight, patch, kind, pool_mode):
    grid = (x.shape[0], *_grid(x.shape[1:3], patch, pool_mode))
    pooled = (*grid, x.shape[3])
    index = x.new_empty(pooled if kind == "max" else (0,), dtype=torch.uint8)
    return x.new_empty((*grid, weight.shape[0])), index, x.new_empty(pooled)


def _fake_backward(
    grad, pooled, weight, index, height, width, patch, kind, pool_mode, need_x, need_weight
):
    map_ = (grad.shape[0], height, width, pooled.shape[3])
    shape = weight.shape if need_weight else (0,)
    grad_weight = grad.new_empty(shape, dtype=parameter_dtype(grad))
    return grad.new_empty(map_ if need_x else (0,)), grad_weight


def _setup_context(ctx, inputs, output):
    x, weight, *ctx.constants = inputs
    ctx.size = x.shape[1:3]
    _, index, pooled = output
    ctx.mark_non_differentiable(index, pooled)
    ctx.save_for_backward(pooled, weight, index)


def _backward(ctx, grad, *_):
    grad_x, grad_weight = torch.ops.hybrid.patch_embed_backward(
        grad, *ctx.saved_tensors, *ctx.size, *ctx.constants, *ctx.needs_input_grad[:2]
    )
    need_x, need_weight = ctx.needs_input_grad[:2]
    grad_weight = grad_weight.to(grad.dtype) if need_weight else None
    return grad_x if need_x else None, grad_weight, None, None, None


def _flops(x, weight, patch, kind, pool_mode, **_):
    rows, columns = _grid(x.shape[1:3], patch, pool_mode)
    return x.numel() + 2 * x.shape[0] * rows * columns * weight.numel()


def _flops_backward(
    grad, pooled, weight, index, height, width, patch, kind, pool_mode, need_x, need_weight, **_
):
    channels = weight.shape[1]
    spread = grad.shape[0] * height * width * channels
    return need_x * spread + (need_x + need_weight) * 2 * grad.numel() * channels


def _check(x, weight, patch, kind, pool_mode):
    op = "patch_embed"
    require_map(op, "x", x)
    require_pixels(op, x)
    _check_pooling(x.shape, patch, kind, pool_mode)
    _check_weight(weight, ("x", x))


def _check_pooling(shape, patch, kind, pool_mode):
    op = "patch_embed"
    require(shape[3] >= 1, f"{op}: x has shape {tuple(shape)}; expected at least one channel")
    require(1 <= patch <= MAX_PATCH, f"{op}: patch = {patch}; expected 1 to {MAX_PATCH}")
    require(kind in ("max", "avg"), f"{op}: kind = '{kind}'; expected max or avg")
    require(
        pool_mode in ("ceil", "floor"),
        f"{op}: pool_mode = '{pool_mode}'; expected ceil or floor",
    )
    require(
        min(_grid(shape[1:3], patch, pool_mode)) >= 1,
        f"{op}: x is a map of {shape[1]} x {shape[2]} pixels, which holds no whole patch of "
        f"side {patch}; use pool_mode = 'ceil'",
    )


def _check_weight(weight, beside):
    op, (_, like) = "patch_embed", beside
    width = weight.shape[0] if weight.dim() == 2 else 0
    shape = (width, like.shape[3])
    require_tensor(op, "weight", weight, [shape], "(C', C)", like.dtype, beside)
    require(width >= 1, f"{op}: weight has shape {tuple(weight.shape)}; expected C' >= 1")


def _check_backward(
    grad, pooled, weight, index, height, width, patch, kind, pool_mode, need_x, need_weight
):
    op = "patch_embed"
    require_map(op, "pooled", pooled)
    require(
        height >= 1 and width >= 1,
        f"{op}: a map of {height} x {width} pixels; expected at least one",
    )
    _check_pooling((pooled.shape[0], height, width, pooled.shape[3]), patch, kind, pool_mode)
    _check_weight(weight, ("pooled", pooled))
    grid = (pooled.shape[0], *_grid((height, width), patch, pool_mode))
    require_like(op, "grad", grad, (*grid, weight.shape[0]), "(B, H', W', C')", pooled)
    require(
        pooled.shape[1:3] == grid[1:],
        f"{op}: pooled has shape {tuple(pooled.shape)}; expected {grid} and channels, for a map of "
        f"{height} x {width} pixels",
    )
    if kind == "max":
        meaning, beside = "(B, H', W', C)", ("pooled", pooled)
        require_tensor(op, "index", index, [pooled.shape], meaning, torch.uint8, beside)


register(
    "patch_embed",
    module="patch_embed",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x", "weight"),
    flops=_flops,
)
register(
    "patch_embed_backward",
    module="patch_embed",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
