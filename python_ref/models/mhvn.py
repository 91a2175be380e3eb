"""MHVN and GC-MHVN: nuclei segmentation with MRL blocks in HoVer-Net's layout.

"MRL: Learning to Mix with Attention and Convolutions", Sec. 4.3 and Appendix A.3.1. An encoder of
MRL-CvT stages and two decoders of the same blocks. One tells nuclei from background, the other maps
every pixel to its distance from the centre of its nucleus; `python_ref.nuclei` has the targets, the
loss and the way from the two maps to instances. The paper does not print widths and depths; those
here give a size between the networks that it compares with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    ConvNorm,
    Mlp,
    MRLMixer,
    init_linear,
    quick_gelu,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Backbone, Settings, configure
from python_ref.models.cvt import CvT, CvTConfig

OUTPUTS = 2  # background and nucleus; horizontal and vertical distance


@dataclass(frozen=True)
class MHVNConfig:
    """The encoder's three stages, then the decoders' (coarsest first), then switches of MRL.

    Heads are 96 channels wide. The encoder's stages have strides 4, 8, 16, the decoders' 8, 4, 2.
    """

    depths: tuple[int, ...] = (1, 2, 10)
    widths: tuple[int, ...] = (96, 288, 576)
    head_dim: int = 96
    regions: tuple[int, ...] = (4, 4, 2)
    decoder_depths: tuple[int, ...] = (2, 2, 1)
    decoder_regions: tuple[int, ...] = (4, 4, 8)
    hidden: int = 64  # channels before the output
    common_qkv: bool = False
    gc: str | None = None  # group convolution in every local mix: "append" or "replace"
    gc_group: str = "p4"  # or "p4m"
    gc_reduce: str = "max"  # or "mean"


VARIANTS = {"mhvn": MHVNConfig(), "gc_mhvn": MHVNConfig(gc="append")}


class DecoderStage(nn.Module):
    """1x1 convolution with BatchNorm, nearest up-sampling, [+ map of the encoder], MRL blocks.

    The convolution comes before the up-sampling: the result is the same, at a quarter of the cost.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, region: int, config: MHVNConfig) -> None:
        super().__init__()
        self.reduce = ConvNorm(in_dim, dim, 1)
        self.blocks = nn.Sequential()
        for _ in range(depth):
            mixer = MRLMixer(
                dim,
                dim // config.head_dim,
                region,
                common=config.common_qkv,
                gc=config.gc,
                gc_group=config.gc_group,
                gc_reduce=config.gc_reduce,
            )
            self.blocks.append(Block(mixer, Mlp(dim, act=quick_gelu), dim))

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None = None) -> Tensor:
        """x (B, in_dim, h, w), skip (B, dim, *size) -> (B, dim, *size)."""
        x = F.interpolate(self.reduce(x), tuple(size), mode="nearest")
        if skip is not None:
            x = x + skip
        return to_nchw(self.blocks(to_nhwc(x)))


class Decoder(nn.Module):
    """Stages back to stride 2, then up-sampling and two convolutions to two maps."""

    def __init__(self, config: MHVNConfig) -> None:
        super().__init__()
        finest, middle, coarsest = config.widths
        self.stages = nn.ModuleList(
            DecoderStage(in_dim, dim, depth, region, config)
            for in_dim, dim, depth, region in zip(
                (coarsest, middle, finest),
                (middle, finest, finest),
                config.decoder_depths,
                config.decoder_regions,
                strict=True,
            )
        )
        self.hidden = ConvNorm(finest, config.hidden, 3, act=F.relu)
        self.output = nn.Conv2d(config.hidden, OUTPUTS, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Maps of the encoder -> (B, 2, *size)."""
        fine, middle, x = maps
        x = self.stages[0](x, middle.shape[-2:], middle)
        x = self.stages[1](x, fine.shape[-2:], fine)
        x = self.stages[2](x, [(side + 1) // 2 for side in size])
        x = F.interpolate(x, tuple(size), mode="nearest")
        return self.output(self.hidden(x))


class MHVN(Backbone):
    """Image (B, in_chans, H, W) in [0, 1] -> nucleus logits and distances, each (B, 2, H, W).

    The published network sees 256 x 256 pixels and is trained and read on the central 164 x 164;
    any size runs. With features_only it returns the maps of the encoder. There is no classifier:
    num_classes means nothing here.
    """

    def __init__(self, config: MHVNConfig, settings: Settings) -> None:
        _check(config)
        super().__init__(config.widths, (4, 8, 16), settings)
        encoder = CvTConfig(
            config.depths,
            "cq_mrl" if config.common_qkv else "mrl",
            widths=config.widths,
            head_dim=config.head_dim,
            regions=config.regions,
            cls_token=False,
            gc=config.gc,
            gc_group=config.gc_group,
            gc_reduce=config.gc_reduce,
        )
        self.encoder = CvT(encoder, replace(settings, features_only=True, out_indices=None))
        if not settings.features_only:
            self.nucleus, self.distance = Decoder(config), Decoder(config)
        self.apply(init_linear)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return self.encoder(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | list[Tensor]:
        maps = self.forward_features(x)
        if self.features_only:
            return [maps[index] for index in self.out_indices]
        size = x.shape[-2:]
        return self.nucleus(maps, size), self.distance(maps, size)


def build(name: str, settings: Settings, **options: object) -> MHVN:
    """Build a variant by name; options replace fields of its `MHVNConfig`."""
    return MHVN(configure(VARIANTS[name], name, options), settings)


def _check(config: MHVNConfig) -> None:
    for name in ("decoder_depths", "decoder_regions"):
        if len(getattr(config, name)) != 3:
            raise ValueError(
                f"{name} must have three entries, coarsest stage first, got {getattr(config, name)}"
            )
