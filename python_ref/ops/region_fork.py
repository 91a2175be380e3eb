"""The map of MRL's mixer and the tokens of its regions: both are read on, MRL Sec. 2.1."""

from torch import Tensor

from python_ref.ops.region_sample import region_sample


def region_fork(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`region_sample` of x, and x itself for the local mix.

    Together because their gradients are: what returns from the local mix and what the tokens give
    back add up in x, and a kernel can write the sum at once (`dx_init` of the sampling's backward).

    Args:
        x, weight, bias: as in `region_sample`.

    Returns:
        The tokens (B, H', W', C), and x.
    """
    return region_sample(x, weight, bias), x
