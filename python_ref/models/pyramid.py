"""Stages one after another: what most families share."""

from collections.abc import Callable, Iterable, Sequence

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
    """[Stem and] stages at strides 4, 8, 16, 32; the output of a stage feeds the next.

    Args:
        stem: image (B, in_chans, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)); the first stage does
            not change that size. None leaves it to the first stage.
        stages: one per width, (B, H, W, C) -> (B, H', W', C').
        widths: channels of the stage maps.
        settings: what `create_model` was asked for.
        head: (channels, classes) -> module from the last map to logits.
        init: applied to every module.
    """

    def __init__(
        self,
        stem: nn.Module | None,
        stages: Iterable[nn.Module],
        widths: Sequence[int],
        settings: Settings,
        head: Callable[[int, int], nn.Module] = ConvHead,
        init: Callable[[nn.Module], None] = init_transformer,
    ) -> None:
        super().__init__(widths, (4, 8, 16, 32), settings)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head(widths[-1], settings.num_classes) if settings.has_head else None
        self.apply(init)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return stage_maps(self.stages, x if self.stem is None else self.stem(x))


def stage_maps(
    stages: Iterable[nn.Module], x: Tensor, norms: nn.ModuleDict | None = None
) -> list[Tensor]:
    """Run stages (B, H, W, C) -> (B, H', W', C') one after another.

    Args:
        stages: the output of each feeds the next.
        x: input of the first, NCHW.
        norms: for numbers of stages, what is applied to the returned map but not passed on.

    Returns:
        The output of every stage, NCHW, channels-last in memory.
    """
    maps = []
    x = to_nhwc(x)
    for number, stage in enumerate(stages):
        x = stage(x)
        name = str(number)
        normed = norms is not None and name in norms
        maps.append(to_nchw(norms[name](x) if normed else x))
    return maps
