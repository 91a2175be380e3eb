"""Semantics of a small grid injected into a map of the backbone: MSCSA Sec. 3.4, Fig. 5."""

from torch import Tensor, nn

from python_ref.layers.conv_norm import ConvNorm
from python_ref.layers.layout import to_nchw, to_nhwc
from python_ref.ops import REFERENCE, OpTable


class Injection(nn.Module):
    """local * up(hardsigmoid(weight(g))) + up(offset(g)), up bilinear to the size of the local map.

    Weight and offset are 1x1 convolutions with BatchNorm, on the small grid. MSCSA takes the map
    itself as the local one where it has the right width; TopFormer always convolves it.

    Args:
        in_dim: channels of the map.
        semantic_dim: channels of the semantics g.
        dim: channels of the output.
        convolve: a 1x1 convolution with BatchNorm for the local map; by default only if in_dim and
            dim differ.
    """

    used_ops = ("inject_fuse",)

    def __init__(
        self, in_dim: int, semantic_dim: int, dim: int, convolve: bool | None = None
    ) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        convolve = in_dim != dim if convolve is None else convolve
        self.local = ConvNorm(in_dim, dim, 1) if convolve else nn.Identity()
        self.weight = ConvNorm(semantic_dim, dim, 1)
        self.offset = ConvNorm(semantic_dim, dim, 1)

    def forward(self, x: Tensor, semantics: Tensor) -> Tensor:
        """x (B, in_dim, H_i, W_i), semantics (B, semantic_dim, H, W) -> (B, dim, H_i, W_i)."""
        parts = (self.local(x), self.weight(semantics), self.offset(semantics))
        return to_nchw(self.ops.inject_fuse(*map(to_nhwc, parts)))
