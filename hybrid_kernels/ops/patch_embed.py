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


def _grid(x, patch, pool_mode):
    further = patch - 1 if pool_mode == "ceil" else 0
    return (x.shape[1] + further) // patch, (x.shape[2] + further) // patch


def _fake(x, weight, patch, kind, pool_mode):
    grid = (x.shape[0], *_grid(x, patch, pool_mode))
    index = (*grid, x.shape[3]) if kind == "max" else (0,)
    return x.new_empty((*grid, weight.shape[0])), x.new_empty(index, dtype=torch.uint8)


def _fake_backward(grad, x, weight, index, patch, kind, pool_mode, need_x, need_weight):
    grad_x = x.new_empty(x.shape if need_x else (0,))
    return grad_x, x.new_empty(weight.shape if need_weight else (0,), dtype=parameter_dtype(x))


def _setup_context(ctx, inputs, output):
    x, weight, *ctx.constants = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])


def _backward(ctx, grad, _):
    needs = ctx.needs_input_grad[:2]
    x, weight, index = ctx.saved_tensors
    grads = torch.ops.hybrid.patch_embed_backward(grad, x, weight, index, *ctx.constants, *needs)
    given = (
        g.to(t.dtype) if need else None
        for g, t, need in zip(grads, (x, weight), needs, strict=True)
    )
    return *given, None, None, None


def _flops(x, weight, patch, kind, pool_mode, **_):
    rows, columns = _grid(x, patch, pool_mode)
    return x.numel() + 2 * x.shape[0] * rows * columns * weight.numel()


def _flops_backward(grad, x, weight, index, patch, kind, pool_mode, need_x, need_weight, **_):
    return (need_x + need_weight) * _flops(x, weight, patch, kind, pool_mode)


def _check(x, weight, patch, kind, pool_mode):
    op = "patch_embed"
    require_map(op, "x", x)
    require_pixels(op, x)
    require(x.shape[3] >= 1, f"{op}: x has shape {tuple(x.shape)}; expected at least one channel")
    require(1 <= patch <= MAX_PATCH, f"{op}: patch = {patch}; expected 1 to {MAX_PATCH}")
    require(kind in ("max", "avg"), f"{op}: kind = '{kind}'; expected max or avg")
    require(
        pool_mode in ("ceil", "floor"),
        f"{op}: pool_mode = '{pool_mode}'; expected ceil or floor",
    )
    require(
        min(_grid(x, patch, pool_mode)) >= 1,
        f"{op}: x is a map of {x.shape[1]} x {x.shape[2]} pixels, which holds no whole patch of "
        f"side {patch}; use pool_mode = 'ceil'",
    )
    width = weight.shape[0] if weight.dim() == 2 else 0
    require_like(op, "weight", weight, (width, x.shape[3]), "(C', C)", x)
    require(width >= 1, f"{op}: weight has shape {tuple(weight.shape)}; expected C' >= 1")


def _check_backward(grad, x, weight, index, patch, kind, pool_mode, need_x, need_weight):
    _check(x, weight, patch, kind, pool_mode)
    op, grid = "patch_embed", (x.shape[0], *_grid(x, patch, pool_mode))
    require_like(op, "grad", grad, (*grid, weight.shape[0]), "(B, H', W', C')", x)
    if kind == "max":
        shape, meaning = (*grid, x.shape[3]), "(B, H', W', C)"
        require_tensor(op, "index", index, [shape], meaning, torch.uint8, ("x", x))


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
