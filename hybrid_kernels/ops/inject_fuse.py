"""Coarse semantics injected into a finer map: bilinear enlargement, product and sum in one pass."""

import torch
from torch import Tensor

from ._maps import require_like, require_map, require_pixels
from ._registration import register


def inject_fuse(local: Tensor, logit: Tensor, offset: Tensor) -> Tensor:
    """Compute ``local * up(hardsigmoid(logit)) + up(offset)``, ``up`` bilinear to local's size.

    The hard sigmoid is taken on the coarse map. Row ``y`` of the fine map reads row ``max(0, (y +
    0.5) * H / H_i - 0.5)`` of the coarse one (``align_corners=False``).

    Args:
        local: Fine map ``(B, H_i, W_i, C)``, with at least one pixel. float32, bfloat16, float16,
            or float64 (CPU); any strides, fastest with the channels side by side.
        logit: Coarse map ``(B, H, W, C)`` in the dtype of ``local``, with at least one pixel, any
            strides; it may also be the larger one.
        offset: The same, of the size of ``logit``.

    Returns:
        ``(B, H_i, W_i, C)``, contiguous, in ``local``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or device.

    Source: MSCSA ("Vision backbone enhancement via multi-stage cross-scale attention"), Fig. 5b;
        TopFormer's semantic injection.
    """
    return torch.ops.hybrid.inject_fuse(local, logit, offset)


def _fake(local, logit, offset):
    return local.new_empty(local.shape)


def _fake_backward(grad, local, logit, offset, need_local, need_logit, need_offset):
    needed = ((local, need_local), (logit, need_logit), (offset, need_offset))
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in needed)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    needs = ctx.needs_input_grad
    grads = torch.ops.hybrid.inject_fuse_backward(grad, *ctx.saved_tensors, *needs)
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def _flops(local, *_, **__):
    """Two interpolations between columns, the product and the sum; rows cost less."""
    return (2 * 3 + 2) * local.numel()


def _flops_backward(grad, local, logit, offset, need_local, need_logit, need_offset, **_):
    return (4 * need_local + 5 * need_logit + 4 * need_offset) * local.numel()


def _check(local, logit, offset):
    op = "inject_fuse"
    require_map(op, "local", local)
    require_pixels(op, local, "local")
    require_map(op, "logit", logit)
    require_pixels(op, logit, "logit")
    size = (local.shape[0], *logit.shape[1:3], local.shape[3])
    for name, coarse in (("logit", logit), ("offset", offset)):
        meaning = "(B, H, W, C), B and C as local, H and W as logit"
        require_like(op, name, coarse, size, meaning, local)


def _check_backward(grad, local, logit, offset, need_local, need_logit, need_offset):
    _check(local, logit, offset)
    require_like("inject_fuse_backward", "grad", grad, local.shape, "(B, H, W, C), as local", local)


register(
    "inject_fuse",
    module="inject_fuse",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast_widest=("local", "logit", "offset"),
    flops=_flops,
)
register(
    "inject_fuse_backward",
    module="inject_fuse",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
