"""PartialFormer: attention for a few foreground tokens, one shared query for the rest.

Vo, "Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object Recognition",
chapter 5 (Sec. 5.3.2 to 5.3.4, Eq. 5.5 to 5.9, Tables 5.1 to 5.7); Vo et al., "Efficient Vision
Transformers with Partial Attention", ECCV 2024. Tokens with the largest mean attend to each other
and to a learned abstract token. That token's output is then the single query that reads the
background, and what it reads is added to every background token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    ConvStem,
    Mlp,
    PatchEmbed,
    PositionConv,
    drop_path_rates,
)
from python_ref.models.backbone import Settings, check_stages, configure
from python_ref.models.pyramid import Pyramid, Stage
from python_ref.ops import REFERENCE, OpTable

_EPS = 1e-6


@dataclass(frozen=True)
class PartialFormerConfig:
    """What distinguishes the variants (first three), and what the paper leaves open or ablates."""

    width: int  # of the first stage; every stage doubles it
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[int | None, ...] = (64, 16, 4, 4)  # None: attention of all tokens, in a stage
    expansion: int = 2
    squeeze: int = 32
    stem: str = "full"  # or "depthwise", the 3x3 convolution in the middle
    score: str = "pre_norm"  # or "post_norm"
    bg_inner_residual: bool = True
    absorbed: bool = False


VARIANTS = {
    "partialformer_b0": PartialFormerConfig(24, (2, 2, 6, 6), (2, 4, 8, 16)),
    "partialformer_b1": PartialFormerConfig(32, (2, 2, 6, 6), (2, 4, 8, 16)),
    "partialformer_b2": PartialFormerConfig(48, (2, 2, 8, 8), (3, 6, 12, 24)),
    "partialformer_b3": PartialFormerConfig(64, (2, 2, 8, 8), (4, 8, 16, 32)),
    "partialformer_b4": PartialFormerConfig(96, (2, 2, 8, 6), (6, 12, 24, 48)),
}
# Another reading of the published counts, nearly as good: ordinary attention in the last stage.
ALTERNATIVE_B = {"ratios": (64, 16, 4, None), "squeeze": 8, "stem": "depthwise"}


class ChannelMlp(nn.Module):
    """Linear to a narrow width, LayerNorm, ReLU, Linear back, on vectors (B, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=_EPS)
        self.expand = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(F.relu(self.norm(self.reduce(x))))


class PartialAttention(nn.Module):
    """Full attention for the foreground tokens of a map, one shared vector for the background.

    The N / ratio tokens with the largest channel mean are the foreground. With a learned abstract
    token in front they attend to each other, heads mixed before and after the softmax (MMSA,
    Eq. 5.5). The output of the abstract token is the query that reads the background, one per head
    (SQA, Eq. 5.6); a small MLP of what it reads is added to all background tokens (Eq. 5.7). Holds
    the LayerNorm before it, because the choice looks at the map before that norm. A map without
    background, of one token or with ratio 1, gives the parameters of `update` no gradient.

    Args:
        dim: channels C.
        heads: attention heads; C must be a multiple.
        ratio: tokens per foreground token; at least one token is in the foreground.
        expansion: mixed heads per head.
        hidden: width of the MLP after the single query.
        score: tokens are compared "pre_norm" or "post_norm". After a LayerNorm with initial
            parameters all channel means are zero, and rounding decides.
        bg_inner_residual: background tokens keep the normalised input (Eq. 5.7), beside the
            residual of the block.
        absorbed: the single query reads the tokens themselves, not keys and values: exact in real
            arithmetic and cheaper, where the published counts have the projections.

    Raises:
        ValueError: heads does not divide dim, ratio is below 1, or score is unknown.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ratio: int,
        expansion: int = 2,
        hidden: int = 8,
        score: str = "pre_norm",
        bg_inner_residual: bool = True,
        absorbed: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {ratio}")
        if score not in ("pre_norm", "post_norm"):
            raise ValueError(f"score must be 'pre_norm' or 'post_norm', got {score!r}")
        self.ops: OpTable = REFERENCE
        self.used_ops = (
            "context_topk",
            "mixed_head_attention",
            "single_query_attention_absorbed" if absorbed else "single_query_attention",
            "partial_combine",
        )
        self.heads, self.ratio, self.score = heads, ratio, score
        self.bg_inner_residual, self.absorbed = bg_inner_residual, absorbed
        self.scale = (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.token = nn.Parameter(torch.empty(dim))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.mix_in = nn.Linear(heads, expansion * heads)
        self.mix_out = nn.Linear(expansion * heads, heads)
        self.project = nn.Linear(dim, dim)
        self.update = ChannelMlp(dim, hidden)
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C), not normalised -> (B, H, W, C)."""
        return self.attend(x.flatten(1, 2)).unflatten(1, x.shape[1:3])

    def attend(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        tokens, number = self.norm(x), x.shape[1]
        foreground = max(1, number // self.ratio)
        index = self.ops.context_topk(x if self.score == "pre_norm" else tokens, foreground)
        qkv = None if self.absorbed else self.qkv(tokens)
        out = self.mix_foreground(self._foreground_qkv(tokens, qkv, index))
        query, out = out[:, :1], out[:, 1:]
        if foreground == number:
            return out
        update = self.update(self.read_background(query, tokens, qkv, index))
        kept = tokens if self.bg_inner_residual else torch.zeros_like(tokens)
        return self.ops.partial_combine(kept, update, out, index)

    def mix_foreground(self, qkv: Tensor) -> Tensor:
        """MMSA of the abstract token (row 0) and the foreground, (B, M, 3C) -> (B, M, C)."""
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
        layers = (self.mix_in.weight, self.mix_in.bias, self.mix_out.weight, self.mix_out.bias)
        out = self.ops.mixed_head_attention(query, key, value, *layers, self.scale)
        return self.project(out.flatten(-2))

    def read_background(
        self, query: Tensor, tokens: Tensor, qkv: Tensor | None, index: Tensor
    ) -> Tensor:
        """SQA: the tokens (B, N, C) that are not in index, read by query (B, 1, C) -> (B, C)."""
        query = query.unflatten(-1, (self.heads, -1))
        if qkv is None:
            _, key_weight, value_weight = self.qkv.weight.chunk(3)
            out = self.ops.single_query_attention_absorbed(
                query,
                tokens,
                key_weight,
                value_weight,
                self.qkv.bias.chunk(3)[2],
                self.scale,
                index,
            )
        else:
            _, key, value = qkv.unflatten(-1, (3, self.heads, -1)).unbind(dim=2)
            out = self.ops.single_query_attention(query, key, value, self.scale, index)
        return out.flatten(1)

    def _foreground_qkv(self, tokens: Tensor, qkv: Tensor | None, index: Tensor) -> Tensor:
        """Queries, keys and values of the abstract token and the foreground, (B, M, 3C)."""
        source = tokens if qkv is None else qkv
        where = index.long().unsqueeze(-1).expand(-1, -1, source.shape[2])
        chosen = source.gather(1, where)
        token = self.qkv(self.token).expand(tokens.shape[0], 1, -1)
        return torch.cat([token, self.qkv(chosen) if qkv is None else chosen], dim=1)


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens, for a stage without a ratio; holds its LayerNorm too."""

    used_ops = ("multiscale_attention",)

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C), not normalised -> (B, H, W, C)."""
        qkv = self.qkv(self.norm(x)).flatten(1, 2).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(dim=2)
        out = self.ops.multiscale_attention(query, [key], [value], self.scale)
        return self.project(out.flatten(-2)).unflatten(1, x.shape[1:3])


class PartialFormer(Pyramid):
    """PartialFormer backbone with classifier, see `python_ref.models.create_model`."""

    def __init__(self, config: PartialFormerConfig, settings: Settings) -> None:
        _check(config)
        widths = [config.width * 2**i for i in range(4)]
        embeds = [nn.Identity()]
        embeds += [PatchEmbed(*pair, 3, 2, 1, norm="batch") for pair in pairwise(widths)]
        rates = drop_path_rates(settings.drop_path, config.depths)
        stages = [
            Stage(embed, _blocks(config, dim, heads, ratio, drop_paths), dim)
            for embed, dim, heads, ratio, drop_paths in zip(
                embeds, widths, config.heads, config.ratios, rates, strict=True
            )
        ]
        stem = ConvStem(settings.in_chans, config.width, config.stem)
        super().__init__(stem, stages, widths, settings)


def _blocks(
    config: PartialFormerConfig,
    dim: int,
    heads: int,
    ratio: int | None,
    drop_paths: Sequence[float],
) -> list[Block]:
    def mixer() -> nn.Module:
        if ratio is None:
            return SelfAttention(dim, heads)
        return PartialAttention(
            dim,
            heads,
            ratio,
            config.expansion,
            max(8, dim // config.squeeze),
            config.score,
            config.bg_inner_residual,
            config.absorbed,
        )

    return [
        Block(
            mixer(),
            Mlp(dim, depthwise=True, norm_eps=_EPS),
            dim,
            norm_eps=None,
            drop_path=rate,
            position=PositionConv(dim),
        )
        for rate in drop_paths
    ]


def build(name: str, settings: Settings, **options: object) -> PartialFormer:
    """Build a variant by name; options replace fields of its `PartialFormerConfig`."""
    return PartialFormer(configure(VARIANTS[name], name, options), settings)


def _check(config: PartialFormerConfig) -> None:
    check_stages(4, depths=config.depths, heads=config.heads, ratios=config.ratios)
