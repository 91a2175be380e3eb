"""Channel mixers. A block adds their output to its input."""

import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers.layout import to_nchw, to_nhwc
from python_ref.layers.squeeze_excite import SqueezeExcite


class Mlp(nn.Module):
    """LayerNorm, Linear C -> ratio * C, GELU, Linear back: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ratio * dim)
        self.project = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.expand(self.norm(x))))


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
