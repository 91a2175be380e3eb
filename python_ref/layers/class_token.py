"""A map and a class token as one row of tokens, for blocks that treat both alike."""

import torch
from torch import Tensor


def to_tokens(x: Tensor, cls: Tensor | None) -> Tensor:
    """Map (B, H, W, C) and class token (B, 1, C) or None -> tokens (B, [1 +] H * W, C)."""
    tokens = x.flatten(1, 2)
    return tokens if cls is None else torch.cat([cls, tokens], dim=1)


def split_class_token(x: Tensor, size: tuple[int, int] | None) -> tuple[Tensor | None, Tensor]:
    """The class token (B, 1, C) and the map (B, H, W, C) of what a mixer is given.

    Args:
        x: tokens (B, 1 + H * W, C), or a map (B, H, W, C) if there is no class token.
        size: (H, W) of the tokens; None for a map.
    """
    if size is None:
        return None, x
    return x[:, :1], x[:, 1:].unflatten(1, size)
