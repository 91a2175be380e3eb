"""Channel mixers. A block adds their output to its input."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers.layout import to_nchw, to_nhwc, to_stencil
from python_ref.layers.squeeze_excite import SqueezeExcite
from python_ref.ops import REFERENCE, OpTable

DEPTHWISE = (False, True, "residual", "between")
# Activations that the depthwise operator applies on its way out.
NAMES = {F.relu: "relu", F.relu6: "relu6", F.gelu: "gelu", F.hardswish: "hardswish"}


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of CLIP and CvT."""
    return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """[LayerNorm], Linear, [depthwise 3x3], activation, Linear: (B, H, W, C) -> (B, H, W, C').

    Args:
        dim: channels C.
        ratio: hidden width as a multiple of C, rounded down.
        act: activation of the hidden layer.
        depthwise: a 3x3 depthwise convolution with bias on the hidden map h: False has none, True
            is act(dw(h)), "residual" is act(h + dw(h)), "between" is act(dw(act(h))).
        norm_eps: of the LayerNorm in front; None leaves it out.
        bias: of both linear layers.
        out_dim: channels C' of the output, C unless given.

    Raises:
        ValueError: depthwise is none of these.
    """

    def __init__(
        self,
        dim: int,
        ratio: float = 4,
        *,
        act: Callable[[Tensor], Tensor] = F.gelu,
        depthwise: bool | str = False,
        norm_eps: float | None = 1e-5,
        bias: bool = True,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        if depthwise not in DEPTHWISE:
            raise ValueError(f"depthwise must be one of {DEPTHWISE}, got {depthwise!r}")
        hidden = int(ratio * dim)
        self.ops: OpTable = REFERENCE
        self.used_ops = ("dwconv_act",) if depthwise else ()
        self.act, self.depthwise_mode = act, depthwise
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm_eps is not None else None
        self.expand = nn.Linear(dim, hidden, bias=bias)
        self.depthwise = (
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        )
        self.project = nn.Linear(hidden, out_dim or dim, bias=bias)

    def _activate(self, hidden: Tensor) -> Tensor:
        if self.depthwise is None:
            return self.act(hidden)
        if self.depthwise_mode == "between":
            hidden = self.act(hidden)
        if self.depthwise_mode == "residual" or self.act not in NAMES:
            mixed = self._mix(hidden, "none")
            return self.act(hidden + mixed if self.depthwise_mode == "residual" else mixed)
        return self._mix(hidden, NAMES[self.act])

    def _mix(self, hidden: Tensor, act: str) -> Tensor:
        weight, bias = to_stencil(self.depthwise), self.depthwise.bias
        return self.ops.dwconv_act(hidden, weight, bias, act)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.expand(x if self.norm is None else self.norm(x))
        return self.project(self._activate(hidden))


class ConvNextMlp(nn.Module):
    """Depthwise 7x7, then `Mlp`, then squeeze-and-excitation: ACC-ViT's Table 8, last row.

    The published counts pin the parts, not their order.
    """

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.mlp = Mlp(dim, ratio)
        self.squeeze_excite = SqueezeExcite(dim, dim // 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.squeeze_excite(self.mlp(to_nhwc(self.depthwise(to_nchw(x)))))
