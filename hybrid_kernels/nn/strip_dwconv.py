"""Strip convolutions as one depthwise convolution with their outer product as its kernel."""

from torch import Tensor

from python_ref.ops import strip_dwconv as reference_strip

from ..ops import dwconv_act


def strip_dwconv(x: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """`python_ref.ops.strip_dwconv` in one pass over the map, for strips of three taps.

    Nine taps cost what six do, because memory is the limit, and no map lies between the strips.
    Longer strips, which no published model has, are the reference's: their product would cost more
    than it saves.

    Args:
        x: feature map (B, H, W, C).
        horizontal, vertical: kernels (k, C), odd k.

    Returns:
        (B, H, W, C).
    """
    if horizontal.shape != vertical.shape or horizontal.shape[0] != 3:
        return reference_strip(x, horizontal, vertical)
    return dwconv_act(x, vertical[:, None] * horizontal)
