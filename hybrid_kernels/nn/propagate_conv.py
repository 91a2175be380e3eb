"""EMSNet's gathering of scales: one pass spreads and joins them, the library multiplies."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..ops import propagate_cat


def propagate_conv(
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor | None],
    weight: Tensor,
    height: int,
    width: int,
    gate_x: Tensor | None,
    gate_weight: Tensor | None,
) -> Tensor:
    """`python_ref.ops.propagate_conv` with its input joined by `propagate_cat`.

    The joined map is written once and the spread ones never; products and gate are the library's.

    Args:
        maps: maps (B, H, W, C_i), or tokens (B, h_i, w_i, C_i).
        kernels: for each of them None, or the kernel (p_i, p_i, C_i) that spreads the tokens.
        weight: (C', sum of the C_i).
        height, width: H and W.
        gate_x: (B, H, W, C_g), or None.
        gate_weight: (C', C_g), or None.

    Returns:
        (B, H, W, C').

    Raises:
        ValueError, RuntimeError: shapes do not fit, or one of gate_x and gate_weight is missing.
    """
    if (gate_x is None) != (gate_weight is None):
        raise ValueError("gate_x and gate_weight must be given together, or both be None")
    y = F.linear(propagate_cat(maps, kernels, height, width), weight)
    return y if gate_x is None else F.linear(gate_x, gate_weight) * y.sigmoid()
