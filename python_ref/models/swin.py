"""Swin Transformer and MRL-Swin: a pyramid of four stages with local or regional attention.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (Liu et al., 2021), a
baseline of MSCSA (Table 6); "MRL: Learning to Mix with Attention and Convolutions", Sec. 4.2,
replaces the window attention and its table of positions by a region-wise mixer.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    Mlp,
    MRLMixer,
    PatchEmbed,
    PatchMerging,
    PoolHead,
    WindowAttention,
    drop_path_rates,
    init_linear,
)
from python_ref.models.backbone import Backbone, Settings, check_stages, configure
from python_ref.models.pyramid import stage_maps

_PATCH = 4
MIXERS = ("window", "mrl")


@dataclass(frozen=True)
class SwinConfig:
    """Blocks per stage and the mixer; below, what the variants have in common."""

    depths: tuple[int, ...]
    mixer: str = "window"
    widths: tuple[int, ...] = (96, 192, 384, 768)
    head_dim: int = 32
    window: int = 7
    # MRL. The paper gives neither; these fit its parameters and operations best.
    regions: tuple[int, ...] = (8, 4, 2, 1)
    regional_linear: bool = True  # an output layer of the regional attention, as Swin's has
    stage_norms: bool = True  # a LayerNorm on every map that features_only returns


VARIANTS = {
    "swin_t": SwinConfig((2, 2, 6, 2)),
    "swin_s": SwinConfig((2, 2, 18, 2)),
    "mrl_swin_t": SwinConfig((2, 2, 6, 2), "mrl"),
    "mrl_swin_s": SwinConfig((2, 2, 18, 2), "mrl"),
}


class Swin(Backbone):
    """Swin with either mixer, see `python_ref.models.create_model`.

    Any input size: images and maps that do not halve are filled up with zeros, so that every
    stride rounds up. What features_only returns, and what is classified, is normalised.
    """

    def __init__(self, config: SwinConfig, settings: Settings) -> None:
        _check(config)
        widths = config.widths
        super().__init__(widths, (4, 8, 16, 32), settings)
        rates = drop_path_rates(settings.drop_path, config.depths)
        self.stages = nn.ModuleList()
        for index, (dim, drop_paths) in enumerate(zip(widths, rates, strict=True)):
            if index == 0:
                reduce = PatchEmbed(settings.in_chans, dim, _PATCH, _PATCH)
            else:
                reduce = PatchMerging(widths[index - 1], dim)
            blocks = (
                Block(_mixer(config, index, number), Mlp(dim), dim, drop_path=rate)
                for number, rate in enumerate(drop_paths)
            )
            self.stages.append(nn.Sequential(reduce, *blocks))
        normed = [len(widths) - 1]
        if settings.features_only:
            normed = self.out_indices if config.stage_norms else []
        self.norms = nn.ModuleDict({str(index): nn.LayerNorm(widths[index]) for index in normed})
        self.head = PoolHead(widths[-1], settings.num_classes) if settings.has_head else None
        self.apply(init_linear)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        x = F.pad(x, (0, -x.shape[3] % _PATCH, 0, -x.shape[2] % _PATCH))
        return stage_maps(self.stages, x, self.norms)


def build(name: str, settings: Settings, **options: object) -> Swin:
    """Build a variant by name; options replace fields of its `SwinConfig`."""
    return Swin(configure(VARIANTS[name], name, options), settings)


def _mixer(config: SwinConfig, stage: int, number: int) -> nn.Module:
    dim = config.widths[stage]
    heads = dim // config.head_dim
    if config.mixer == "mrl":
        return MRLMixer(
            dim,
            heads,
            config.regions[stage],
            kv_conv=False,
            scale_mode="head",
            regional_linear=config.regional_linear,
        )
    # Every second block shifts its windows by half of one.
    return WindowAttention(dim, heads, config.window, config.window // 2 if number % 2 else 0)


def _check(config: SwinConfig) -> None:
    if config.mixer not in MIXERS:
        raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, got {config.mixer!r}")
    check_stages(4, widths=config.widths, depths=config.depths, regions=config.regions)
    if any(width % config.head_dim for width in config.widths):
        raise ValueError(f"head_dim must divide the widths {config.widths}, got {config.head_dim}")
