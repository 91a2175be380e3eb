"""MAT: window attention whose windows exchange information through abstract tokens.

Vo, "Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object Recognition",
chapter 4 (Sec. 4.3.1 attention, 4.3.2 patch embedding, Tables 4.2, 4.3, 4.9). Windows do not
overlap; each has a token that summarises it, the tokens of an image attend to each other, and all
pixels read them, so that one block sees the whole map. The first two stages mix pixels with the
depthwise convolutions of their MLPs only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    ConvNorm,
    ConvStem,
    Mlp,
    PatchEmbed,
    PatchMerging,
    PositionConv,
    WindowAttention,
    drop_path_rates,
    to_nchw,
    to_nhwc,
)
from python_ref.models.backbone import Settings, check_stages, configure
from python_ref.models.pyramid import Pyramid, Stage
from python_ref.ops import REFERENCE, OpTable

_EPS = 1e-6


@dataclass(frozen=True)
class MATConfig:
    """What distinguishes the variants (first three), and the switches of Tables 4.2 and 4.9."""

    width: int  # of the first stage; every stage doubles it
    depths: tuple[int, ...]
    head_dim: int
    mixers: tuple[str, ...] = ("none", "none", "abstract", "abstract")  # or "window", per stage
    mlp_depthwise: bool = True
    embed: str = "bilinear"  # or "conv", "merge"
    window: int = 7
    abstract_proj: str = "raw"  # or "proj", see AbstractTokenAttention
    mask_pad: bool = True


VARIANTS = {
    "mat_1": MATConfig(24, (2, 2, 6, 6), 8),
    "mat_2": MATConfig(32, (2, 2, 6, 6), 16),
    "mat_3": MATConfig(36, (2, 2, 8, 8), 18),
    "mat_4": MATConfig(48, (3, 3, 8, 8), 16),
    "mat_5": MATConfig(64, (2, 2, 8, 8), 16),
}
# The ablation's baseline: MLPs alone, without their convolutions.
PURE_MLP = {"mixers": ("none",) * 4, "mlp_depthwise": False}


class AbstractTokenAttention(nn.Module):
    """Attention within windows, between their abstract tokens, and from pixels to those tokens.

    Abstraction (Eq. 4.1 to 4.3): every window attends within itself and to one learned token, whose
    output summarises the window. Mixing (Eq. 4.4): the summaries attend to each other. Fusion
    (Eq. 4.5): every pixel adds what it reads from them with the query that it already has.

    Args:
        dim: channels C.
        heads: attention heads; C must be a multiple.
        window: window side in pixels.
        abstract_proj: "raw" takes the learned token itself as its query, key and value, as the
            published operation counts do; "proj" puts it through the linear layer of the pixels, as
            Eq. 4.2 is written.
        mask_pad: pixels that fill up the last windows are no keys; False gives them the key and
            value of a zero, as in Swin.

    Raises:
        ValueError: heads does not divide dim, or abstract_proj is unknown.
    """

    used_ops = ("abstract_token_fork", "multiscale_attention", "token_fusion")

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int = 7,
        abstract_proj: str = "raw",
        mask_pad: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        if abstract_proj not in ("raw", "proj"):
            raise ValueError(f"abstract_proj must be 'raw' or 'proj', got {abstract_proj!r}")
        self.ops: OpTable = REFERENCE
        self.heads, self.window = heads, window
        self.abstract_proj, self.mask_pad = abstract_proj, mask_pad
        self.scale = (dim // heads) ** -0.5
        self.token = nn.Parameter(torch.empty(dim))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.mix_qkv = nn.Linear(dim, 3 * dim)
        self.mix_project = nn.Linear(dim, dim)
        self.fuse_kv = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        out, summary, query = self.ops.abstract_token_fork(
            qkv, self._token(), self.window, self.scale, self._pad_kv()
        )
        key_value = self.fuse_kv(self.mix(summary)).unflatten(-1, (2, self.heads, -1))
        query, local = (t.flatten(1, 2) for t in (query, out))
        fused = self.ops.token_fusion(query, key_value, local, self.scale)
        return self.project(fused.flatten(-2)).unflatten(1, x.shape[1:3])

    def mix(self, summary: Tensor) -> Tensor:
        """Summaries (B, windows, h, d) -> abstract tokens that know each other (B, windows, C)."""
        qkv = self.mix_qkv(summary.flatten(-2)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(dim=2)
        out = self.ops.multiscale_attention(query, [key], [value], self.scale)
        return self.mix_project(out.flatten(-2))

    def _token(self) -> Tensor:
        """Query, key and value of the abstract token, (3, h, d)."""
        if self.abstract_proj == "raw":
            return self.token.unflatten(0, (self.heads, -1)).expand(3, -1, -1)
        return self.qkv(self.token).unflatten(0, (3, self.heads, -1))

    def _pad_kv(self) -> Tensor | None:
        """Key and value of a pixel outside the map, (2, h, d), where it has any."""
        return None if self.mask_pad else self.qkv.bias.unflatten(0, (3, self.heads, -1))[1:]


class BilinearEmbed(nn.Module):
    """Patch embedding that samples the map at learned points, Sec. 4.3.2 and Table 4.12.

    A depthwise convolution of stride 2, LayerNorm, GELU and a linear layer predict how far every
    sampling point moves from the middle of its 2 x 2 pixels; what is sampled goes through a
    depthwise convolution, a 1x1 convolution and BatchNorm.
    """

    used_ops = ("bilinear_sample",)

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.offset_conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim)
        self.offset_norm = nn.LayerNorm(dim, eps=_EPS)
        self.offset = nn.Linear(dim, 2, bias=False)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.expand = ConvNorm(dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C')."""
        hidden = to_nhwc(self.offset_conv(to_nchw(x)))
        offset = self.offset(F.gelu(self.offset_norm(hidden)))
        sampled = self.ops.bilinear_sample(x, offset)
        return to_nhwc(self.expand(self.depthwise(to_nchw(sampled))))


_EMBEDS = {
    "bilinear": BilinearEmbed,
    "conv": lambda dim, out_dim: PatchEmbed(dim, out_dim, 3, 2, 1, norm="batch"),
    "merge": lambda dim, out_dim: PatchMerging(dim, out_dim, _EPS),
}


class MAT(Pyramid):
    """MAT backbone with classifier, see `python_ref.models.create_model`."""

    def __init__(self, config: MATConfig, settings: Settings) -> None:
        _check(config)
        widths = [config.width * 2**i for i in range(4)]
        embeds = [nn.Identity()]
        embeds += [_EMBEDS[config.embed](*pair) for pair in pairwise(widths)]
        rates = drop_path_rates(settings.drop_path, config.depths)
        stages = [
            Stage(embed, _blocks(config, mixer, dim, drop_paths), dim)
            for embed, mixer, dim, drop_paths in zip(
                embeds, config.mixers, widths, rates, strict=True
            )
        ]
        super().__init__(ConvStem(settings.in_chans, config.width), stages, widths, settings)
        for embed in embeds:
            if isinstance(embed, BilinearEmbed):
                nn.init.zeros_(embed.offset.weight)  # at first every point is a 2 x 2 mean


def _blocks(config: MATConfig, mixer: str, dim: int, drop_paths: Sequence[float]) -> list[Block]:
    """Position encoding and mixer where a stage has one, and an MLP."""
    return [
        Block(
            _mixer(config, mixer, dim),
            Mlp(dim, depthwise=config.mlp_depthwise, norm_eps=_EPS),
            dim,
            norm_eps=_EPS,
            drop_path=rate,
            position=None if mixer == "none" else PositionConv(dim),
        )
        for rate in drop_paths
    ]


def _mixer(config: MATConfig, mixer: str, dim: int) -> nn.Module | None:
    if mixer == "none":
        return None
    heads = dim // config.head_dim
    if mixer == "window":
        return WindowAttention(dim, heads, config.window, position_bias=False)
    return AbstractTokenAttention(dim, heads, config.window, config.abstract_proj, config.mask_pad)


def build(name: str, settings: Settings, **options: object) -> MAT:
    """Build a variant by name; options replace fields of its `MATConfig`."""
    return MAT(configure(VARIANTS[name], name, options), settings)


def _check(config: MATConfig) -> None:
    check_stages(4, depths=config.depths, mixers=config.mixers)
    for mixer in config.mixers:
        if mixer not in ("none", "window", "abstract"):
            raise ValueError(f"mixers must be 'none', 'window' or 'abstract', got {mixer!r}")
    if config.embed not in _EMBEDS:
        raise ValueError(f"embed must be one of {', '.join(_EMBEDS)}, got {config.embed!r}")
    if config.width % config.head_dim:
        raise ValueError(f"head_dim must divide width = {config.width}, got {config.head_dim}")
