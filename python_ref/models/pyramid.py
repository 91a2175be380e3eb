"""Stages that end in a norm; the pyramid of them that MAT, PartialFormer and MCGA share."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from python_ref.layers import ConvHead, init_transformer, to_nchw, to_nhwc
from python_ref.models.backbone import Backbone, Settings


class Stage(nn.Module):
    """Patch embedding, blocks and a LayerNorm: (B, H, W, C) -> (B, H', W', C')."""

    def __init__(
        self, embed: nn.Module, blocks: Iterable[nn.Module], dim: int, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(x)))


class Pyramid(Backbone):
    """Stem and stages at strides 4, 8, 16, 32; the normalised output of a stage feeds the next.

    Args:
        stem: image (B, in_chans, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)).
        stages: one per width; the first does not change the size of its map.
        widths: channels of the stage maps.
        settings: what `create_model` was asked for.
    """

    def __init__(
        self, stem: nn.Module, stages: Iterable[Stage], widths: Sequence[int], settings: Settings
    ) -> None:
        super().__init__(widths, (4, 8, 16, 32), settings)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = ConvHead(widths[-1], settings.num_classes) if settings.has_head else None
        self.apply(init_transformer)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = to_nhwc(self.stem(x))
        for stage in self.stages:
            x = stage(x)
            maps.append(to_nchw(x))
        return maps
