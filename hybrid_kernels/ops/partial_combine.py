"""Foreground and background tokens of an image, put back into its order."""

import torch
from torch import Tensor

from ._registration import register, require, require_tensor


def partial_combine(x: Tensor, update: Tensor, foreground: Tensor, index: Tensor) -> Tensor:
    """Replace some tokens of every image and add one vector to all others, in one pass.

    ``out[index] = foreground``, and ``out_i = x_i + update`` for every other token ``i``.

    Args:
        x: Tokens ``(B, N, C)``. float32, bfloat16, float16, or float64 (CPU); any strides, fastest
            with a token's channels side by side.
        update: ``(B, C)``.
        foreground: ``(B, n, C)``, ``1 <= n <= N``.
        index: Positions ``(B, n)`` of the foreground tokens, distinct, int32 or int64. On a GPU
            nobody looks at their values.

    Returns:
        ``(B, N, C)``, contiguous, in ``x``'s dtype. Under autocast ``x``, ``update`` and
        ``foreground`` may differ in dtype and the widest of them is computed in and returned;
        outside autocast a difference is an error.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: PartialFormer ("Efficient Vision Transformers with Partial Attention"), Eq. 5.7.
    """
    return torch.ops.hybrid.partial_combine(x, update, foreground, index)


def _fake(x, update, foreground, index):
    return x.new_empty(x.shape)


def _fake_backward(grad, index, need_x, need_update, need_foreground):
    B, N, C = grad.shape
    return (
        grad.new_empty((B, N, C) if need_x else (0,)),
        grad.new_empty((B, C) if need_update else (0,)),
        grad.new_empty((B, index.shape[1], C) if need_foreground else (0,)),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[3])


def _backward(ctx, grad):
    (index,) = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads = torch.ops.hybrid.partial_combine_backward(grad, index, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


def _flops(*_, **__):
    """Additions and copies: none of what FLOP counters count."""
    return 0


def _check(x, update, foreground, index):
    _check_tokens("x", x, index)
    B, _, C = x.shape
    for name, tensor, shape, meaning in (
        ("update", update, (B, C), "(B, C)"),
        ("foreground", foreground, (B, index.shape[1], C), "(B, n, C)"),
    ):
        require_tensor("partial_combine", name, tensor, [shape], meaning, x.dtype, ("x", x))


def _check_tokens(name, x, index):
    op = "partial_combine"
    require(
        x.dim() == 3,
        f"{op}: {name} has shape {tuple(x.shape)}; expected 3 dimensions: (B, N, C)",
    )
    require(
        x.is_floating_point(),
        f"{op}: {name} has {x.dtype}; expected float32, bfloat16, float16 or float64",
    )
    B, N, _ = x.shape
    require(
        index.dim() == 2 and index.shape[0] == B and 1 <= index.shape[1] <= N,
        f"{op}: index has shape {tuple(index.shape)}; expected ({B}, n) = (B, foreground tokens) "
        f"with 1 <= n <= {N}",
    )
    require(
        index.dtype in (torch.int32, torch.int64),
        f"{op}: index holds no int32 or int64 indices but {index.dtype}; convert it with "
        ".to(torch.int64)",
    )
    require(
        index.device == x.device,
        f"{op}: index is on {index.device} but {name} is on {x.device}; move them to one device",
    )


def _check_backward(grad, index, need_x, need_update, need_foreground):
    _check_tokens("grad", grad, index)


register(
    "partial_combine",
    module="partial_combine",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast_widest=("x", "update", "foreground"),
    flops=_flops,
)
register(
    "partial_combine_backward",
    module="partial_combine",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops,
)
