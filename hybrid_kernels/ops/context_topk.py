"""Choice of an image's foreground: the tokens whose channels have the largest mean."""

import torch
from torch import Tensor

from ._registration import register, require


def context_topk(u: Tensor, n: int) -> Tensor:
    """Indices of the ``n`` tokens of every image whose channels have the largest mean.

    The means are taken in float32 (float64 for float64). Of equal means the lower index wins; NaN
    is larger than everything. Not differentiable.

    Args:
        u: Tokens ``(B, N, C)``, ``C >= 1``. float32, bfloat16, float16, or float64 (CPU); any
            strides, fastest with a token's channels side by side.
        n: How many to choose, ``1 <= n <= N``.

    Returns:
        Indices ``(B, n)``, int32, ascending.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype or range.

    Source: PartialFormer ("Efficient Vision Transformers with Partial Attention"), Sec. 5.3.2.
    """
    return torch.ops.hybrid.context_topk(u, n)


def _fake(u, n):
    return u.new_empty((u.shape[0], n), dtype=torch.int32)


def _flops(*_, **__):
    """A mean and comparisons: none of what FLOP counters count."""
    return 0


def _check(u, n):
    op = "context_topk"
    require(
        u.dim() == 3,
        f"{op}: u has shape {tuple(u.shape)}; expected 3 dimensions: (B, N, C)",
    )
    require(
        u.is_floating_point(),
        f"{op}: u has {u.dtype}; expected float32, bfloat16, float16 or float64",
    )
    require(u.shape[2] >= 1, f"{op}: u has shape {tuple(u.shape)}; expected at least one channel")
    require(
        1 <= n <= u.shape[1], f"{op}: n = {n}; expected 1 to the {u.shape[1]} tokens of an image"
    )


register("context_topk", module="context_topk", check=_check, fake=_fake, flops=_flops)
