"""Stochastic depth, one draw per image."""

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor, nn


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 at the first block to `rate` at the last, per stage."""
    last = max(sum(depths) - 1, 1)
    rates = (rate * depth / last for depth in count())
    return [[next(rates) for _ in range(depth)] for depth in depths]


class DropPath(nn.Module):
    """Drop a residual branch of an image with probability `rate` while training.

    What survives is divided by 1 - rate. The draw is per image, never per window: a map that was
    folded into phases and windows must lose all of them or none.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def factors(self, x: Tensor, branches: int) -> Tensor | None:
        """Independent factors (B, branches, 1) in float32 (float64), or None if nothing drops."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        dtype = torch.promote_types(x.dtype, torch.float32)
        shape = (x.shape[0], branches, 1)
        return torch.empty(shape, dtype=dtype, device=x.device).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape."""
        factors = self.factors(x, 1)
        if factors is None:
            return x
        return x * factors.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
