"""MSCSA: any four-stage backbone with multi-stage cross-scale attention on top.

"Vision Backbone Enhancement via Multi-Stage Cross-Scale Attention" (Shang et al., 2023), Sec. 3.
Beside most backbones the module is an addition; in TopFormer and CoaT it takes the place of the
last, multi-scale part. Classification pools its output. For dense prediction the output is split
by stages again, and every part is injected into the map of its stage (Fig. 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from python_ref.layers import MSCSA, Injection, init_conv_fan_out, init_linear, to_nchw
from python_ref.models import coat, convnext, p2t, pvt_v2, resnet, shunted, swin, topformer
from python_ref.models.backbone import Backbone, Settings, configure

_FAMILIES = (coat, convnext, p2t, pvt_v2, resnet, shunted, swin, topformer)
HEADS = ("mscsa", "concat")
GRIDS = (16, 32, 64)


@dataclass(frozen=True)
class MSCSAConfig:
    """A line of Table 7, and the switches of Tables 4 and 5.

    Attributes:
        squeeze, depth, heads, head_dim, ratio, msp, pcp, intra, enlarge: see `layers.MSCSA`.
        grid: stride of the grid that is classified: 32 and 16 are the sizes of the last two stage
            maps, 64 is half of the last.
        dense_grid: the same for dense prediction.
        inject_width: channels of the maps for dense prediction, the stages' own (squeezed) if None.
        head: "mscsa" classifies the pooled grid alone, "concat" with the pooled last stage map.
        backbone: options of the backbone's family.
    """

    squeeze: float
    depth: int
    heads: int
    head_dim: int
    ratio: float = 2
    grid: int = 32
    dense_grid: int = 32
    inject_width: int | None = None
    msp: str = "parallel"
    pcp: bool = True
    intra: bool = True
    enlarge: str = "pool"
    head: str = "mscsa"
    backbone: Mapping[str, object] = field(default_factory=dict)


_SERIAL_ONLY = {"parallel_depth": 0}
_TABLE_7 = {
    "topformer_t": MSCSAConfig(1, 2, 4, 14, 3, dense_grid=64, inject_width=128),
    "topformer_b": MSCSAConfig(1, 2, 8, 12, 3, dense_grid=64, inject_width=256),
    "coat_tiny": MSCSAConfig(1, 3, 8, 22, 1.5, grid=16, backbone=_SERIAL_ONLY),
    "coat_small": MSCSAConfig(1, 3, 8, 52, 2, grid=16, backbone=_SERIAL_ONLY),
    "resnet18": MSCSAConfig(5 / 8, 1, 8, 24),
    "resnet50": MSCSAConfig(1 / 4, 1, 8, 32),
    "pvt_v2_b0": MSCSAConfig(3 / 4, 1, 8, 15),
    "pvt_v2_b1": MSCSAConfig(5 / 8, 1, 8, 24),
    "pvt_v2_b2": MSCSAConfig(1, 1, 8, 35),
    "p2t_tiny": MSCSAConfig(3 / 4, 1, 8, 36),
    "shunted_t": MSCSAConfig(5 / 8, 1, 8, 30),
    "swin_t": MSCSAConfig(3 / 4, 1, 12, 28),
    "convnext_t": MSCSAConfig(3 / 4, 1, 12, 28),
}
_FAMILY_OF = {name: family for family in _FAMILIES for name in family.VARIANTS}
VARIANTS = {f"{backbone}_mscsa": config for backbone, config in _TABLE_7.items()}


class MSCSABackbone(Backbone):
    """A backbone with MSCSA, see `python_ref.models.create_model`.

    With features_only the maps of `out_indices` are fused ones; the grid always pools all four.

    Args:
        backbone: image -> four stage maps, described by its `feature_info`.
        config: of the variant.
        settings: what `create_model` was asked for.

    Raises:
        ValueError: head, grid or an option of `layers.MSCSA` is unknown.
    """

    def __init__(self, backbone: Backbone, config: MSCSAConfig, settings: Settings) -> None:
        _check(config)
        in_widths = [info.channels for info in backbone.feature_info]
        mscsa = MSCSA(
            in_widths,
            squeeze=config.squeeze,
            depth=config.depth,
            heads=config.heads,
            head_dim=config.head_dim,
            ratio=config.ratio,
            msp=config.msp,
            pcp=config.pcp,
            intra=config.intra,
            enlarge=config.enlarge,
            drop_path=settings.drop_path,
        )
        widths = mscsa.widths
        if config.inject_width is not None:
            widths = [config.inject_width] * len(widths)
        super().__init__(widths, [info.stride for info in backbone.feature_info], settings)
        self.backbone, self.mscsa = backbone, mscsa
        self.grid = config.dense_grid if settings.features_only else config.grid
        self.concat = config.head == "concat"
        self.injections = nn.ModuleDict()
        if settings.features_only:
            convolve = True if config.inject_width is not None else None
            for index in self.out_indices:
                self.injections[str(index)] = Injection(
                    in_widths[index], mscsa.widths[index], widths[index], convolve
                )
            self.injections.apply(init_conv_fan_out)
        elif settings.has_head:
            dim = sum(mscsa.widths) + (in_widths[-1] if self.concat else 0)
            self.head = nn.Linear(dim, settings.num_classes)
            self.head.apply(init_linear)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """x (B, in_chans, H, W) -> the stage maps of the backbone, before anything is fused."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = self.forward_features(x)
        semantics = self.mscsa(maps, self._grid_size(maps))
        if self.features_only:
            return self._inject(maps, to_nchw(semantics))
        pooled = semantics.mean(dim=(1, 2))
        if self.concat:
            pooled = torch.cat([pooled, maps[-1].mean(dim=(2, 3))], dim=-1)
        return pooled if self.head is None else self.head(pooled)

    def _grid_size(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        height, width = maps[2 if self.grid == 16 else 3].shape[-2:]
        if self.grid == 64:
            return (height - 1) // 2 + 1, (width - 1) // 2 + 1
        return height, width

    def _inject(self, maps: Sequence[Tensor], semantics: Tensor) -> list[Tensor]:
        parts = semantics.split(self.mscsa.widths, dim=1)
        return [
            self.injections[str(index)](maps[index], parts[index]) for index in self.out_indices
        ]


def build(name: str, settings: Settings, **options: object) -> MSCSABackbone:
    """Build a variant by name; options replace fields of its `MSCSAConfig`.

    The option `backbone` adds to the backbone's options: {"depths": (1, 1, 1, 1)}.
    """
    default = VARIANTS[name]
    config = configure(default, name, options)
    backbone_options = {**default.backbone, **config.backbone}
    stages = replace(settings, features_only=True, out_indices=None)
    inner = name.removesuffix("_mscsa")
    backbone = _FAMILY_OF[inner].build(inner, stages, **backbone_options)
    return MSCSABackbone(backbone, config, settings)


def _check(config: MSCSAConfig) -> None:
    if config.head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {config.head!r}")
    for name in ("grid", "dense_grid"):
        if getattr(config, name) not in GRIDS:
            raise ValueError(f"{name} must be one of {GRIDS}, got {getattr(config, name)}")
