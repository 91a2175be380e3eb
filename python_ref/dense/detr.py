"""The four maps that Deformable DETR's transformer reads, "Deformable DETR" appendix A.2."""

from collections.abc import Sequence

from torch import Tensor, nn

from python_ref.models.backbone import FeatureInfo


class DeformableDetrNeck(nn.Module):
    """1x1 convolutions of the maps of strides 8 to 32, a 3x3 of stride 2 of the last, GroupNorm.

    Args:
        features: maps of the backbone; those finer than stride 8 are not used.
        dim: width of the outputs.
        groups: of the GroupNorm.
    """

    def __init__(
        self, features: Sequence[FeatureInfo], *, dim: int = 256, groups: int = 32
    ) -> None:
        super().__init__()
        used = [info for info in features if info.stride >= 8]
        self.skipped = len(features) - len(used)
        convs = [nn.Conv2d(info.channels, dim, 1) for info in used]
        convs.append(nn.Conv2d(used[-1].channels, dim, 3, stride=2, padding=1))
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, dim) for _ in convs)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """-> maps (B, dim, H_i, W_i) of strides 8, 16, 32 and 64."""
        used = [*maps[self.skipped :], maps[-1]]
        return [norm(conv(x)) for conv, norm, x in zip(self.convs, self.norms, used, strict=True)]
