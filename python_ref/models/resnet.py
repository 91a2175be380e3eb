"""ResNet: residual blocks of convolutions, the baseline that every family is measured against.

"Deep Residual Learning for Image Recognition" (He et al., 2016), Table 1, with the stride of a
bottleneck on its 3x3 convolution. A baseline of MSCSA (Table 6).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import ConvNorm, DropPath, PoolHead, drop_path_rates, init_transformer
from python_ref.models.backbone import Backbone, Settings, configure


@dataclass(frozen=True)
class ResNetConfig:
    """Blocks and inner widths of the stages; a bottleneck's output is four times as wide."""

    depths: tuple[int, ...]
    bottleneck: bool
    hidden: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stage maps."""
        return tuple((4 if self.bottleneck else 1) * hidden for hidden in self.hidden)


VARIANTS = {
    "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNetConfig((3, 4, 6, 3), bottleneck=True),
}


class BasicBlock(nn.Sequential):
    """The residual of two 3x3 convolutions, the first with the stride, NCHW."""

    def __init__(self, in_dim: int, hidden: int, dim: int, stride: int) -> None:
        super().__init__(
            ConvNorm(in_dim, hidden, 3, stride, act=F.relu),
            ConvNorm(hidden, dim, 3),
        )


class Bottleneck(nn.Sequential):
    """The residual of a narrow 3x3 convolution between two 1x1, NCHW."""

    def __init__(self, in_dim: int, hidden: int, dim: int, stride: int) -> None:
        super().__init__(
            ConvNorm(in_dim, hidden, 1, act=F.relu),
            ConvNorm(hidden, hidden, 3, stride, act=F.relu),
            ConvNorm(hidden, dim, 1),
        )


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + DropPath(residual(x))); the shortcut is projected where shapes differ."""

    def __init__(
        self, in_dim: int, hidden: int, dim: int, stride: int, bottleneck: bool, drop_path: float
    ) -> None:
        super().__init__()
        residual = Bottleneck if bottleneck else BasicBlock
        self.residual = residual(in_dim, hidden, dim, stride)
        same = stride == 1 and in_dim == dim
        self.shortcut = nn.Identity() if same else ConvNorm(in_dim, dim, 1, stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.drop_path(self.residual(x)))


class ResNet(Backbone):
    """ResNet with classifier, see `python_ref.models.create_model`.

    Any input size: every stride rounds up.
    """

    def __init__(self, config: ResNetConfig, settings: Settings) -> None:
        super().__init__(config.widths, (4, 8, 16, 32), settings)
        self.stem = ConvNorm(settings.in_chans, config.stem, 7, 2, act=F.relu)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.stages = nn.ModuleList()
        in_dim = config.stem
        rates = drop_path_rates(settings.drop_path, config.depths)
        for hidden, dim, drop_paths in zip(config.hidden, config.widths, rates, strict=True):
            stage = nn.Sequential()
            for index, rate in enumerate(drop_paths):
                stride = 2 if index == 0 and self.stages else 1
                stage.append(ResidualBlock(in_dim, hidden, dim, stride, config.bottleneck, rate))
                in_dim = dim
            self.stages.append(stage)
        self.head = PoolHead(in_dim, settings.num_classes) if settings.has_head else None
        self.apply(init_transformer)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        x = self.pool(self.stem(x.contiguous(memory_format=torch.channels_last)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def build(name: str, settings: Settings, **options: object) -> ResNet:
    """Build a variant by name; options replace fields of its `ResNetConfig`."""
    return ResNet(configure(VARIANTS[name], name, options), settings)
