"""What every backbone shares: the arguments of create_model, features_only, feature_info."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor, nn

Config = TypeVar("Config")


@dataclass(frozen=True)
class Settings:
    """The arguments of `create_model` that mean the same for every family."""

    num_classes: int = 1000
    in_chans: int = 3
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None  # all stages
    drop_path: float = 0.0

    @property
    def has_head(self) -> bool:
        return self.num_classes > 0 and not self.features_only


@dataclass(frozen=True)
class FeatureInfo:
    """A map that a backbone returns with features_only: (B, channels, H / stride, W / stride)."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Image (B, in_chans, H, W) -> stage maps -> logits, see `python_ref.models.create_model`.

    A family implements `forward_features`, and sets `head` to a module from the last map to logits
    (or overrides `forward_head`), or to None if `settings.has_head` is false.

    Args:
        widths: channels of the stage maps.
        strides: pixels of the image per pixel of the stage maps.
        settings: what `create_model` was asked for.

    Raises:
        ValueError: out_indices names a stage that is not there.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], settings: Settings) -> None:
        super().__init__()
        stages = len(widths)
        indices = settings.out_indices
        if indices is None:
            indices = tuple(range(stages))
        if any(not 0 <= index < stages for index in indices):
            raise ValueError(f"out_indices must be in 0..{stages - 1}, got {indices}")
        self.features_only = settings.features_only
        self.out_indices = indices
        self.stage_info = tuple(map(FeatureInfo, widths, strides))
        self.head: nn.Module | None = None

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Channels and strides of the maps that features_only returns."""
        return [self.stage_info[index] for index in self.out_indices]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """x (B, in_chans, H, W) -> the output of every stage, NCHW, channels-last in memory."""
        raise NotImplementedError

    def forward_head(self, maps: list[Tensor]) -> Tensor:
        """Stage maps -> logits (B, num_classes), or pooled features (B, C) without a head."""
        if self.head is None:
            return maps[-1].mean(dim=(2, 3))
        return self.head(maps[-1])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = self.forward_features(x)
        if self.features_only:
            return [maps[index] for index in self.out_indices]
        return self.forward_head(maps)


def configure(config: Config, name: str, options: Mapping[str, object]) -> Config:
    """The settings of a variant with `options` in place of some of its fields.

    Raises:
        ValueError: an option is no field of the settings.
    """
    known = [field.name for field in fields(config)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    return replace(config, **options)


def check_stages(stages: int, **settings: Sequence[object]) -> None:
    """Refuse settings that have not one entry for each stage.

    Raises:
        ValueError: names the first of them.
    """
    for name, entries in settings.items():
        if len(entries) != stages:
            raise ValueError(
                f"{name} must have one entry for each of the {stages} stages, got {entries}"
            )
