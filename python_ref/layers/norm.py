"""Normalisation with the constants of the papers."""

from torch import nn


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with eps 1e-3 and momentum 0.01 in PyTorch's sense, as in ACC-ViT and MaxViT."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
