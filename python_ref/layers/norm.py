"""Normalisation with the constants of the papers."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Fold:
    """A BatchNorm that is linear in eval mode and has a linear neighbour to become part of.

    Blocks list theirs in the attribute `folds`, by the names of their submodules.

    Args:
        norm: the BatchNorm.
        after: the convolution or linear layer whose output it normalises, or
        before: the one that reads its output, alone and without padding: zeros around a map are
            zeros for the layer, but not for the norm.
    """

    norm: str
    after: str | None = None
    before: str | None = None


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with eps 1e-3 and momentum 0.01 in PyTorch's sense, as in ACC-ViT and MaxViT."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
