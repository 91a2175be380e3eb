"""The transformer block that most families share, on maps (B, H, W, C)."""

from torch import Tensor, nn

from python_ref.layers.drop_path import DropPath
from python_ref.layers.layout import to_nchw, to_nhwc


class PositionConv(nn.Module):
    """x plus its depthwise 3x3 convolution with bias: conditional positional encoding (CPVT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + to_nhwc(self.depthwise(to_nchw(x)))


class Block(nn.Module):
    """[position]; x + DropPath(mixer(LayerNorm(x))); x + DropPath(mlp(x)).

    Args:
        mixer: (B, H, W, C) -> (B, H, W, C); None leaves the first residual branch out.
        mlp: the same; holds its own norm.
        dim: channels C.
        norm_eps: of the LayerNorm before the mixer; None for a mixer that holds its own norm.
        drop_path: rate of both branches.
        position: applied to the input first, for example a `PositionConv`.
    """

    def __init__(
        self,
        mixer: nn.Module | None,
        mlp: nn.Module,
        dim: int,
        *,
        norm_eps: float | None = 1e-5,
        drop_path: float = 0.0,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.position = position
        has_norm = mixer is not None and norm_eps is not None
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if has_norm else None
        self.mixer = mixer
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *shared: object) -> Tensor:
        """x (B, H, W, C) -> the same shape; `shared`, say by a stage, goes on to the mixer."""
        if self.position is not None:
            x = self.position(x)
        if self.mixer is not None:
            normed = x if self.norm is None else self.norm(x)
            x = x + self.drop_path(self.mixer(normed, *shared))
        return x + self.drop_path(self.mlp(x))
