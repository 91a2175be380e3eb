"""Feature pyramid network: maps of equal width, each informed by all coarser ones."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.models.backbone import FeatureInfo


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, top-down sum by nearest up-sampling, 3x3 convolutions.

    Lin et al., "Feature Pyramid Networks for Object Detection", Sec. 3.

    Args:
        features: channels and strides of the maps, finest first.
        dim: width of every level.
        extra: how levels beyond the last map arise: "pool" subsamples the last level by two
            (Faster R-CNN's P6), "conv" runs 3x3 convolutions with stride 2, the first on the last
            map of the backbone (RetinaNet's P6 and P7).
        extra_levels: how many of them.

    Raises:
        ValueError: extra is neither.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        dim: int = 256,
        extra: str = "pool",
        extra_levels: int = 0,
    ) -> None:
        super().__init__()
        if extra not in ("pool", "conv"):
            raise ValueError(f"extra must be 'pool' or 'conv', got {extra!r}")
        self.extra_levels = extra_levels
        self.laterals = nn.ModuleList(nn.Conv2d(info.channels, dim, 1) for info in features)
        self.outputs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in features)
        self.extras = nn.ModuleList()
        if extra == "conv":
            widths = [features[-1].channels, *[dim] * extra_levels]
            self.extras.extend(
                nn.Conv2d(width, dim, 3, stride=2, padding=1) for width in widths[:extra_levels]
            )
        self.feature_info = [FeatureInfo(dim, info.stride) for info in features]
        for _ in range(extra_levels):
            self.feature_info.append(FeatureInfo(dim, 2 * self.feature_info[-1].stride))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i), finest first -> levels (B, dim, H_i, W_i), then the extra."""
        sums = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for index in range(len(sums) - 1, 0, -1):
            finer = sums[index - 1]
            sums[index - 1] = finer + F.interpolate(sums[index], finer.shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.outputs, sums, strict=True)]
        if not self.extras:
            for _ in range(self.extra_levels):
                levels.append(levels[-1][..., ::2, ::2])
            return levels
        coarse = maps[-1]
        for conv in self.extras:
            coarse = conv(coarse)
            levels.append(coarse)
        return levels
