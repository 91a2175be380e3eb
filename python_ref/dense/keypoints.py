"""Key points as heat maps, "Simple Baselines for Human Pose Estimation and Tracking" Sec. 2."""

from collections.abc import Sequence

from torch import Tensor, nn

from python_ref.models.backbone import FeatureInfo


class SimpleBaseline(nn.Sequential):
    """Transposed 4x4 convolutions of stride 2 with BatchNorm and ReLU, then one map per key point.

    Args:
        features: maps of the backbone; only the last is used.
        points: key points, 17 in COCO.
        dim: width of the transposed convolutions.
        steps: how many of them.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        *,
        points: int = 17,
        dim: int = 256,
        steps: int = 3,
    ) -> None:
        super().__init__()
        width = features[-1].channels
        for _ in range(steps):
            self.append(nn.ConvTranspose2d(width, dim, 4, stride=2, padding=1, bias=False))
            self.append(nn.BatchNorm2d(dim)).append(nn.ReLU())
            width = dim
        self.append(nn.Conv2d(width, points, 1))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """-> heat maps (B, points, 2**steps * H_4, 2**steps * W_4)."""
        return super().forward(maps[-1])
