"""ConvNeXt: a convolutional network with the proportions of a transformer.

"A ConvNet for the 2020s" (Liu et al., 2022), Sec. 2, a baseline of MSCSA (Table 6). Large
depthwise kernels take the place of attention; few norms and activations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from python_ref.layers import (
    DropPath,
    Mlp,
    PatchEmbed,
    PoolHead,
    drop_path_rates,
    init_linear,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Backbone, Settings, configure
from python_ref.models.pyramid import stage_maps

_EPS = 1e-6


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Widths and blocks of the stages; the factor with which residuals begin, per channel."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    layer_scale: float = 1e-6


VARIANTS = {"convnext_t": ConvNeXtConfig((96, 192, 384, 768), (3, 3, 9, 3))}


class ConvNeXtBlock(nn.Module):
    """x + DropPath(layer_scale * Mlp(LayerNorm(depthwise 7x7(x)))), (B, H, W, C)."""

    def __init__(self, dim: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.mlp = Mlp(dim, norm_eps=_EPS)
        self.layer_scale = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(to_nhwc(self.depthwise(to_nchw(x))))
        return x + self.drop_path(self.layer_scale * y)


class Downsample(nn.Module):
    """LayerNorm, then a convolution of 2x2 patches: (B, H, W, C) -> (B, H // 2, W // 2, C')."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim, eps=_EPS)
        self.reduce = PatchEmbed(in_dim, dim, 2, 2, norm=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.norm(x))


class ConvNeXt(Backbone):
    """ConvNeXt with classifier, see `python_ref.models.create_model`.

    Patches do not overlap and are not padded: a stage map has H // stride rows, at least one. With
    features_only every returned map passes a LayerNorm of its own, as for dense prediction.
    """

    def __init__(self, config: ConvNeXtConfig, settings: Settings) -> None:
        widths = config.widths
        super().__init__(widths, (4, 8, 16, 32), settings)
        self.stages = nn.ModuleList()
        rates = drop_path_rates(settings.drop_path, config.depths)
        for index, (dim, drop_paths) in enumerate(zip(widths, rates, strict=True)):
            if index == 0:
                reduce = PatchEmbed(settings.in_chans, dim, 4, 4, eps=_EPS)
            else:
                reduce = Downsample(widths[index - 1], dim)
            blocks = (ConvNeXtBlock(dim, config.layer_scale, rate) for rate in drop_paths)
            self.stages.append(nn.Sequential(reduce, *blocks))
        self.norms = nn.ModuleDict()
        if settings.features_only:
            for index in self.out_indices:
                self.norms[str(index)] = nn.LayerNorm(widths[index], eps=_EPS)
        elif settings.has_head:
            self.head = PoolHead(widths[-1], settings.num_classes, norm_eps=_EPS)
        self.apply(_init_weights)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return stage_maps(self.stages, x, self.norms)


def build(name: str, settings: Settings, **options: object) -> ConvNeXt:
    """Build a variant by name; options replace fields of its `ConvNeXtConfig`."""
    return ConvNeXt(configure(VARIANTS[name], name, options), settings)


def _init_weights(module: nn.Module) -> None:
    """Truncated normal with deviation 0.02 for linear layers and convolutions, zero biases."""
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
