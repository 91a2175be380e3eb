"""MRL's regional mixing: sampling of a map, attention, and the local mix of the same map."""

from collections.abc import Callable

import torch
from torch import Tensor

from ._maps import autocast_data, widened
from .region_mix import region_mix


class _Fork(torch.autograd.Function):
    """region_sample(x) and x. What comes back along both is one gradient, written once."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        return torch.ops.hybrid.region_sample(x, weight, bias), x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_x: Tensor | None):
        if grad is None:
            return grad_x, None, None
        needed = ctx.needs_input_grad
        start = grad_x if needed[0] else None
        grads = torch.ops.hybrid.region_sample_backward(grad, *ctx.saved_tensors, start, *needed)
        return tuple(g if need else None for g, need in zip(grads, needed, strict=True))


def region_fork(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`region_sample`, and the map again, for whatever else reads it.

    Two readers of a map leave it two gradients, and autograd a third pass to add them up. Whoever
    reads the map that this returns hands its gradient to the backward of the sampling, which adds
    its own part while it writes.

    Args:
        x, weight, bias: As in `region_sample`. Under autocast ``x`` is cast here, once for both.

    Returns:
        The tokens ``(B, ceil(H / r), ceil(W / r), C)``, and ``x``.

    Raises:
        ValueError, RuntimeError: As `region_sample`.

    Source: MRL ("Learning to mix with attention and convolutions"), Sec. 2.1, steps 2 and 4.
    """
    return _Fork.apply(autocast_data(x), widened(weight), widened(bias))


def region_attention(
    x: Tensor,
    sample_weight: Tensor,
    mix_weight: Tensor,
    attend: Callable[[Tensor], Tensor],
    sample_bias: Tensor | None = None,
    mix_bias: Tensor | None = None,
) -> Tensor:
    """Sample regions to tokens, let the tokens attend, return them to the pixels and convolve.

    ``region_mix(x, attend(region_sample(x)))`` with the gradient of ``x`` written once.

    Args:
        x: ``(B, H, W, C)``: see `region_sample`.
        sample_weight: ``(r, r, C)``, which gives the side ``r`` of a region.
        mix_weight: ``(k, k, C)`` with ``k`` 1, 3, 5 or 7.
        attend: From tokens ``(B, ceil(H / r), ceil(W / r), C)`` to tokens of the same shape and
            dtype: linear layers around `multiscale_attention`, for example.
        sample_bias, mix_bias: ``(C,)``, or ``None``.

    Returns:
        ``(B, H, W, C)``, in the dtype of ``x`` (of autocast, under it).

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MRL ("Learning to mix with attention and convolutions"), Sec. 2.1.
    """
    tokens, x = region_fork(x, sample_weight, sample_bias)
    return region_mix(x, attend(tokens), mix_weight, sample_weight.shape[0], mix_bias)
