"""CvT and MRL-CvT: convolutional token embeddings, attention with convolutional projections.

"CvT: Introducing Convolutions to Vision Transformers" (Wu et al., 2021), and the backbones of
"MRL: Learning to Mix with Attention and Convolutions", Table 6 and Appendix A.2, which put a
region-wise mixer in the place of CvT's attention. Three stages at strides 4, 8 and 16, a class
token in the last, no positional encoding.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    CvTAttention,
    Mlp,
    MRLMixer,
    PatchEmbed,
    drop_path_rates,
    init_linear,
    quick_gelu,
    split_class_token,
    to_nchw,
    to_nhwc,
    to_tokens,
)
from python_ref.models.backbone import Backbone, Settings, check_stages, configure

MIXERS = ("cvt", "cq_cvt", "mrl", "cq_mrl")


@dataclass(frozen=True)
class CvTConfig:
    """Blocks per stage and the mixer; below, what the published models have in common.

    The switches of the mixer are those of `MRLMixer`; the mixers "cvt" and "cq_cvt" only know
    kv_stride and qkv_bias. The prefix cq is CommonQKV.
    """

    depths: tuple[int, ...]
    mixer: str
    kv_stride: int = 1
    widths: tuple[int, ...] = (64, 192, 384)
    head_dim: int = 64
    regions: tuple[int, ...] = (4, 4, 2)
    cls_token: bool = True  # False classifies the mean of the last map
    gc: str | None = None  # group convolution in the local mix: "append" or "replace"
    gc_group: str = "p4"  # or "p4m"
    gc_reduce: str = "max"  # or "mean"
    kv_conv: bool = True
    q_conv: bool = False
    samplers: int = 1  # or 3
    sampler_bn: bool = True
    local_bn: bool = True
    qkv_bias: bool = True
    proj_bias: bool = True


_SHARED = ("depths", "mixer", "kv_stride", "widths", "head_dim", "cls_token", "qkv_bias")
_MRL_ONLY = {f.name: f.default for f in fields(CvTConfig) if f.name not in _SHARED}

_13, _21 = (1, 2, 10), (1, 4, 16)
VARIANTS = {
    "cvt_13": CvTConfig(_13, "cvt", kv_stride=2),
    "cvt_21": CvTConfig(_21, "cvt", kv_stride=2),
    "cq_cvt_13": CvTConfig(_13, "cq_cvt", kv_stride=2),
    "cq_cvt_21": CvTConfig(_21, "cq_cvt", kv_stride=2),
    "mrl_cvt_13": CvTConfig(_13, "mrl"),
    "mrl_cvt_21": CvTConfig(_21, "mrl"),
    # The published operations of the 13 layers, not of the 21, only fit strided keys and values.
    "cq_mrl_cvt_13": CvTConfig(_13, "cq_mrl", kv_stride=2),
    "cq_mrl_cvt_21": CvTConfig(_21, "cq_mrl"),
}


class Stage(nn.Module):
    """Convolutional embedding, [class token], transformer blocks.

    Args:
        embed: (B, H, W, C) -> (B, H', W', C').
        blocks: on maps, or on tokens (B, 1 + H' * W', C') and their size.
        cls_dim: width C' of the class token; 0 has none.
    """

    def __init__(self, embed: nn.Module, blocks: list[Block], cls_dim: int) -> None:
        super().__init__()
        self.embed = embed
        self.cls_token = nn.Parameter(torch.empty(1, 1, cls_dim)) if cls_dim else None
        self.blocks = nn.ModuleList(blocks)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, H, W, C) -> map (B, H', W', C') and class token (B, 1, C') or None."""
        x = self.embed(x)
        if self.cls_token is None:
            for block in self.blocks:
                x = block(x)
            return x, None
        size = x.shape[1:3]
        tokens = to_tokens(x, self.cls_token.expand(x.shape[0], -1, -1))
        for block in self.blocks:
            tokens = block(tokens, size)
        cls, x = split_class_token(tokens, size)
        return x, cls


class CvT(Backbone):
    """CvT with any of the mixers, see `python_ref.models.create_model`.

    The classifier sees the normalised class token or, without one, the mean of the last map's
    normalised pixels. Any input size; the 7x7 embedding drops up to two trailing pixels.
    """

    def __init__(self, config: CvTConfig, settings: Settings) -> None:
        _check(config)
        super().__init__(config.widths, (4, 8, 16), settings)
        self.stages = nn.ModuleList()
        last = len(config.widths) - 1
        for index, (dim, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            if index == 0:
                embed = PatchEmbed(settings.in_chans, dim, 7, 4, 2)
            else:
                embed = PatchEmbed(config.widths[index - 1], dim, 3, 2, 1)
            # Only the last stage drops paths; within it the rate rises from 0.
            (rates,) = drop_path_rates(settings.drop_path if index == last else 0.0, [depth])
            blocks = [
                Block(_mixer(config, index), Mlp(dim, act=quick_gelu), dim, drop_path=rate)
                for rate in rates
            ]
            has_cls = config.cls_token and index == last
            self.stages.append(Stage(embed, blocks, dim if has_cls else 0))
        self.norm = None if settings.features_only else nn.LayerNorm(config.widths[-1])
        self.head = (
            nn.Linear(config.widths[-1], settings.num_classes) if settings.has_head else None
        )
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps, cls = self._forward_stages(x)
        if self.features_only:
            return [maps[index] for index in self.out_indices]
        tokens = to_nhwc(maps[-1]).flatten(1, 2) if cls is None else cls
        pooled = self.norm(tokens).mean(dim=1)
        return pooled if self.head is None else self.head(pooled)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return self._forward_stages(x)[0]

    def _forward_stages(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The stage maps (NCHW) and the class token of the last stage."""
        maps, x, cls = [], to_nhwc(x), None
        for stage in self.stages:
            x, cls = stage(x)
            maps.append(to_nchw(x))
        return maps, cls


def build(name: str, settings: Settings, **options: object) -> CvT:
    """Build a variant by name; options replace fields of its `CvTConfig`."""
    return CvT(configure(VARIANTS[name], name, options), settings)


def _mixer(config: CvTConfig, stage: int) -> nn.Module:
    dim, common = config.widths[stage], config.mixer.startswith("cq_")
    heads = dim // config.head_dim
    shared = {
        "kv_stride": config.kv_stride,
        "common": common,
        "qkv_bias": config.qkv_bias,
    }
    if config.mixer.endswith("cvt"):
        return CvTAttention(dim, heads, **shared)
    return MRLMixer(
        dim,
        heads,
        config.regions[stage],
        **shared,
        kv_conv=config.kv_conv,
        q_conv=config.q_conv,
        samplers=config.samplers,
        sampler_bn=config.sampler_bn,
        local_bn=config.local_bn,
        proj_bias=config.proj_bias,
        gc=config.gc,
        gc_group=config.gc_group,
        gc_reduce=config.gc_reduce,
    )


def _check(config: CvTConfig) -> None:
    if config.mixer not in MIXERS:
        raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, got {config.mixer!r}")
    if config.mixer.endswith("cvt"):
        changed = [name for name, value in _MRL_ONLY.items() if getattr(config, name) != value]
        if changed:
            raise ValueError(f"{changed[0]} is an option of MRL, but mixer is {config.mixer!r}")
    check_stages(3, widths=config.widths, depths=config.depths, regions=config.regions)
    if any(width % config.head_dim for width in config.widths):
        raise ValueError(f"head_dim must divide the widths {config.widths}, got {config.head_dim}")
