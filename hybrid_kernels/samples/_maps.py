"""Maps (B, H, W, C) with strides of their own, which every op on maps must read."""

from torch import Tensor

from . import Maker


def channels_first(x: Tensor) -> Tensor:
    """As convolutions leave it: channels before rows and columns."""
    return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def sliced(make: Maker, *shape: int) -> Tensor:
    """Every second pixel of a larger map, and some of its channels."""
    B, H, W, C = shape
    return make.data(B, 2 * H, 2 * W, C + 5)[:, ::2, ::2, 2 : C + 2]


def expanded(make: Maker, *shape: int) -> Tensor:
    """One row over all rows."""
    B, H, W, C = shape
    return make.data(B, 1, W, C).expand(-1, H, -1, -1)
