"""ACC-ViT: atrous attention, gated fusion and atrous inverted residual convolutions.

"Fusion of regional and sparse attention in Vision Transformers", Sec. 2.5, supplement A.2 and
Table 2. A convolutional stem and four stages of [convolution block, attention block].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from python_ref.layers import (
    AtrousAttention,
    AtrousInvertedResidual,
    ConvNextMlp,
    DropPath,
    Fold,
    Mlp,
    batch_norm,
    drop_path_rates,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Backbone, Settings, check_stages, configure

_MLPS = {"mlp": Mlp, "convnext": ConvNextMlp}


@dataclass(frozen=True)
class ACCViTConfig:
    """What distinguishes the variants (first four), and the switches of Table 8."""

    stem: int
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    head_dim: int
    dilations: tuple[tuple[int, ...], ...] = ((1, 2, 4, 8), (1, 2, 4), (1, 2), (1,))
    window_size: int = 7
    scale_mode: str = "head"  # or "width", see AtrousAttention
    dw_dilations: tuple[int, ...] = (1, 2, 3)  # (1,) is the plain MBConv
    gate: bool = True  # False: the mean of the branches, in both kinds of block
    shared_mlp: bool = True  # False: one MLP for each attention branch, before the fusion
    mlp: str = "mlp"  # or "convnext"


VARIANTS = {
    "accvit_femto": ACCViTConfig(32, (32, 64, 128, 256), (1, 2, 4, 1), 16),
    "accvit_pico": ACCViTConfig(48, (48, 96, 192, 384), (1, 2, 4, 1), 16),
    "accvit_nano": ACCViTConfig(64, (64, 128, 256, 512), (1, 2, 4, 1), 32),
    "accvit_tiny": ACCViTConfig(64, (64, 128, 256, 512), (2, 3, 6, 2), 32),
    "accvit_small": ACCViTConfig(64, (96, 192, 384, 768), (2, 3, 6, 2), 32),
    "accvit_base": ACCViTConfig(64, (96, 192, 384, 768), (4, 6, 14, 2), 32),
}


class Stem(nn.Sequential):
    """Two 3x3 convolutions, the first with stride 2, NCHW."""

    folds = (Fold("norm1", after="conv1"),)

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim, 3, stride=2, padding=1, bias=False)
        self.norm1 = batch_norm(dim)
        self.act1 = nn.GELU()
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)


class AttentionBlock(nn.Module):
    """Atrous attention and an MLP shared by its branches, (B, H, W, C) -> (B, H, W, C).

    With shared_mlp=False every branch has its own MLP, and the fusion comes last.
    """

    def __init__(
        self, dim: int, dilations: Sequence[int], config: ACCViTConfig, drop_path: float
    ) -> None:
        super().__init__()
        self.attention = AtrousAttention(
            dim,
            dim // config.head_dim,
            dilations,
            config.window_size,
            config.gate,
            config.scale_mode,
            drop_path,
        )
        number = 1 if config.shared_mlp else len(dilations)
        self.mlps = nn.ModuleList(_MLPS[config.mlp](dim) for _ in range(number))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.mlps) == 1:
            y = self.attention(x)
            return y + self.drop_path(self.mlps[0](y))
        branches = [x + self.attention.drop_path(m) for m in self.attention.attend(x)]
        branches = [y + self.drop_path(mlp(y)) for mlp, y in zip(self.mlps, branches, strict=True)]
        return self.attention.fuse(x, branches, None, residual=False)


class Layer(nn.Module):
    """Convolution block, then attention block, NCHW (channels-last in memory)."""

    def __init__(
        self,
        dim_in: int,
        dim: int,
        stride: int,
        dilations: Sequence[int],
        config: ACCViTConfig,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv = AtrousInvertedResidual(
            dim_in, dim, stride, config.dw_dilations, config.gate, drop_path
        )
        self.attention = AttentionBlock(dim, dilations, config, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return to_nchw(self.attention(to_nhwc(self.conv(x))))


class Head(nn.Module):
    """Pooled map -> LayerNorm, Linear, tanh, Linear without bias: (B, C, H, W) -> logits."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3))
        return self.classifier(self.hidden(self.norm(pooled)).tanh())


class ACCViT(Backbone):
    """ACC-ViT backbone with classifier, see `python_ref.models.create_model`.

    Any input size: stage i has ceil(H / 4 / 2**i) rows, every stride rounding up.
    """

    def __init__(self, config: ACCViTConfig, settings: Settings) -> None:
        _check(config)
        super().__init__(config.widths, (4, 8, 16, 32), settings)
        self.config = config
        self.stem = Stem(settings.in_chans, config.stem)
        self.stages = nn.ModuleList()
        dim_in = config.stem
        for dim, dilations, rates in zip(
            config.widths,
            config.dilations,
            drop_path_rates(settings.drop_path, config.layers),
            strict=True,
        ):
            stage = nn.Sequential()
            for index, rate in enumerate(rates):
                stride = 2 if index == 0 else 1
                stage.append(Layer(dim_in, dim, stride, dilations, config, rate))
                dim_in = dim
            self.stages.append(stage)
        self.head = Head(dim_in, settings.num_classes) if settings.has_head else None
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """x (B, in_chans, H, W) -> the output of every stage, NCHW at strides 4, 8, 16, 32."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def build(name: str, settings: Settings, **options: object) -> ACCViT:
    """Build a variant by name; options replace fields of its `ACCViTConfig`."""
    return ACCViT(configure(VARIANTS[name], name, options), settings)


def _init_weights(module: nn.Module) -> None:
    """Initialisation of TorchVision's MaxViT: N(0, 0.02) weights and zero biases."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(config: ACCViTConfig) -> None:
    check_stages(4, widths=config.widths, layers=config.layers, dilations=config.dilations)
    if any(width % config.head_dim for width in config.widths):
        raise ValueError(f"head_dim must divide the widths {config.widths}, got {config.head_dim}")
    if config.mlp not in _MLPS:
        raise ValueError(f"mlp must be one of {', '.join(_MLPS)}, got {config.mlp!r}")
