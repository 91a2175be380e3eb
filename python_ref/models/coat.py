"""CoaT: factorised attention with convolutional positions, four scales that attend to each other.

"Co-Scale Conv-Attentional Image Transformers" (Xu et al., 2021), a baseline of MSCSA (Table 6),
which keeps the serial blocks and replaces the parallel ones. Every scale is a sequence of a class
token and the pixels of its map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers import (
    Block,
    DropPath,
    Mlp,
    PatchEmbed,
    PositionConv,
    init_linear,
    split_class_token,
    to_nchw,
    to_nhwc,
    to_tokens,
)
from python_ref.models.backbone import Backbone, Settings, check_stages, configure

_BLOCK_EPS = 1e-6
Size = tuple[int, int]


@dataclass(frozen=True)
class CoaTConfig:
    """One width and number of serial blocks per scale; the last three widths are equal.

    windows are the kernels of the convolutional relative positions, each with its heads.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 2, 2)
    parallel_depth: int = 6
    heads: int = 8
    mlp_ratio: int = 4
    windows: tuple[tuple[int, int], ...] = ((3, 2), (5, 3), (7, 3))


VARIANTS = {
    "coat_tiny": CoaTConfig((152, 152, 152, 152)),
    "coat_small": CoaTConfig((152, 320, 320, 320)),
}


class RelativePosition(nn.Module):
    """Values convolved depthwise, with another kernel for every group of heads; CoaT Eq. 5.

    (B, H, W, C) -> (B, H, W, C). All blocks of a scale share one.
    """

    def __init__(self, head_dim: int, windows: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.widths = [heads * head_dim for _, heads in windows]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
            for width, (kernel, _) in zip(self.widths, windows, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = to_nchw(x).split(self.widths, dim=1)
        convolved = [conv(part) for conv, part in zip(self.convs, parts, strict=True)]
        return to_nhwc(torch.cat(convolved, dim=1))


class ConvAttention(nn.Module):
    """Factorised attention plus convolutional relative position, CoaT Sec. 3.2.

    out = scale * q (softmax over tokens of k)^T v + q * conv(v), the second term for the pixels
    only. Linear in the number of tokens: the (d x d) product of keys and values comes first.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, position: RelativePosition, size: Size) -> Tensor:
        """x (B, 1 + H * W, C) -> the same shape; position belongs to the scale."""
        qkv = self.qkv(x)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        factorised = self.scale * query @ (key.softmax(dim=-2).mT @ value)
        flat_query, _, flat_value = qkv.chunk(3, dim=-1)
        _, value_map = split_class_token(flat_value, size)
        relative = flat_query[:, 1:] * position(value_map).flatten(1, 2)
        return self.project(factorised.transpose(1, 2).flatten(-2) + F.pad(relative, (0, 0, 1, 0)))


class SerialScale(nn.Module):
    """Patch embedding, a class token, and blocks behind a shared position convolution.

    Map (B, H, W, C) -> tokens (B, 1 + H' * W', C') and their size (H', W').
    """

    def __init__(
        self, in_dim: int, dim: int, patch: int, depth: int, config: CoaTConfig, drop_path: float
    ) -> None:
        super().__init__()
        self.embed = PatchEmbed(in_dim, dim, patch, patch)
        self.token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = PositionConv(dim)
        self.relative = RelativePosition(dim // config.heads, config.windows)
        self.blocks = nn.ModuleList(
            Block(
                ConvAttention(dim, config.heads),
                Mlp(dim, config.mlp_ratio, norm_eps=_BLOCK_EPS),
                dim,
                norm_eps=_BLOCK_EPS,
                drop_path=drop_path,
            )
            for _ in range(depth)
        )
        nn.init.trunc_normal_(self.token, std=0.02)

    def locate(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens with their positions, which a convolution of the map implies."""
        token, x = split_class_token(tokens, size)
        return to_tokens(self.position(x), token)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        x = self.embed(x)
        size = x.shape[1:3]
        tokens = to_tokens(x, self.token.expand(x.shape[0], -1, -1))
        for block in self.blocks:
            tokens = block(self.locate(tokens, size), self.relative, size)
        return tokens, size


class ParallelBlock(nn.Module):
    """Attention within each of three scales, whose outputs are added across; CoaT Sec. 3.4.

    One MLP serves all scales, hence their widths are equal.
    """

    def __init__(self, dim: int, scales: int, config: CoaTConfig, drop_path: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=_BLOCK_EPS) for _ in range(scales))
        self.mixers = nn.ModuleList(ConvAttention(dim, config.heads) for _ in range(scales))
        self.mlp_norms = nn.ModuleList(nn.LayerNorm(dim, eps=_BLOCK_EPS) for _ in range(scales))
        self.mlp = Mlp(dim, config.mlp_ratio, norm_eps=None)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, scales: list[Tensor], positions: Sequence[RelativePosition], sizes: Sequence[Size]
    ) -> list[Tensor]:
        """Tokens of every scale -> the same shapes."""
        mixed = [
            mixer(norm(tokens), position, size)
            for mixer, norm, tokens, position, size in zip(
                self.mixers, self.norms, scales, positions, sizes, strict=True
            )
        ]
        added = [
            sum(_resized(m, source, size) for m, source in zip(mixed, sizes, strict=True))
            for size in sizes
        ]
        scales = [t + self.drop_path(a) for t, a in zip(scales, added, strict=True)]
        return [
            t + self.drop_path(self.mlp(norm(t)))
            for t, norm in zip(scales, self.mlp_norms, strict=True)
        ]


def _resized(tokens: Tensor, size: Size, target: Size) -> Tensor:
    """The map bilinearly brought to another size, the class token as it is."""
    if size == target:
        return tokens
    token, x = split_class_token(tokens, size)
    x = F.interpolate(to_nchw(x), target, mode="bilinear", align_corners=False)
    return to_tokens(to_nhwc(x), token)


class ClassHead(nn.Module):
    """LayerNorm per scale, a weighted sum of the class tokens, Linear."""

    def __init__(self, dim: int, scales: int, num_classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=_BLOCK_EPS) for _ in range(scales))
        self.aggregate = nn.Conv1d(scales, 1, 1)
        self.classifier = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Tokens (B, 1 + H_i * W_i, C) of every scale -> logits."""
        tokens = [norm(t)[:, 0] for norm, t in zip(self.norms, scales, strict=True)]
        return self.classifier(self.aggregate(torch.stack(tokens, dim=1)).squeeze(1))


class CoaT(Backbone):
    """CoaT backbone with classifier, see `python_ref.models.create_model`.

    With parallel_depth=0 the stage maps are those of the serial blocks. drop_path is the rate of
    every block, as in the original, and does not rise. Patches are not padded: a stage map has
    H // stride rows, at least one.

    Raises:
        ValueError: widths do not fit the heads or each other, or windows do not share out the
            heads.
    """

    def __init__(self, config: CoaTConfig, settings: Settings) -> None:
        _check(config, settings)
        super().__init__(config.widths, (4, 8, 16, 32), settings)
        in_dims = (settings.in_chans, *config.widths[:-1])
        self.serial = nn.ModuleList(
            SerialScale(in_dim, dim, patch, depth, config, settings.drop_path)
            for in_dim, dim, patch, depth in zip(
                in_dims, config.widths, (4, 2, 2, 2), config.depths, strict=True
            )
        )
        dim = config.widths[-1]
        self.parallel = nn.ModuleList(
            ParallelBlock(dim, 3, config, settings.drop_path) for _ in range(config.parallel_depth)
        )
        if not settings.features_only:
            self.head = ClassHead(dim, 3, settings.num_classes)
        self.apply(init_linear)

    def forward_tokens(self, x: Tensor) -> tuple[list[Tensor], list[Size]]:
        """Image (B, in_chans, H, W) -> tokens (B, 1 + H_i * W_i, C_i) of every scale, sizes."""
        scales, sizes = [], []
        x = to_nhwc(x)
        for serial in self.serial:
            tokens, size = serial(x)
            scales.append(tokens)
            sizes.append(size)
            x = split_class_token(tokens, size)[1]
        relatives = [serial.relative for serial in self.serial[1:]]
        for block in self.parallel:
            located = map(SerialScale.locate, self.serial[1:], scales[1:], sizes[1:])
            scales[1:] = block(list(located), relatives, sizes[1:])
        return scales, sizes

    def forward_features(self, x: Tensor) -> list[Tensor]:
        scales, sizes = self.forward_tokens(x)
        maps = map(split_class_token, scales, sizes)
        return [to_nchw(x) for _, x in maps]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.features_only:
            return super().forward(x)
        return self.head(self.forward_tokens(x)[0][1:])  # the classifier reads class tokens


def build(name: str, settings: Settings, **options: object) -> CoaT:
    """Build a variant by name; options replace fields of its `CoaTConfig`."""
    return CoaT(configure(VARIANTS[name], name, options), settings)


def _check(config: CoaTConfig, settings: Settings) -> None:
    check_stages(4, widths=config.widths, depths=config.depths)
    if any(width % config.heads for width in config.widths):
        raise ValueError(f"heads must divide the widths {config.widths}, got {config.heads}")
    if sum(heads for _, heads in config.windows) != config.heads:
        raise ValueError(f"windows must share out {config.heads} heads, got {config.windows}")
    mixed = config.parallel_depth > 0 or not settings.features_only
    if mixed and len(set(config.widths[1:])) > 1:
        raise ValueError(f"the last three widths must be equal, got {config.widths}")
