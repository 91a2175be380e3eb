"""Refusals that several operators share."""

from torch import Tensor


def check_map(x: Tensor, name: str = "x") -> None:
    """Refuse what is no map (B, H, W, C) with at least one pixel; B may be 0."""
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(
            f"{name} must be (B, H, W, C) with at least one pixel, got {tuple(x.shape)}"
        )


def check_channels(vector: Tensor | None, channels: int, name: str) -> None:
    """Refuse a parameter that is neither None nor one number for each channel."""
    if vector is not None and tuple(vector.shape) != (channels,):
        raise ValueError(f"{name} must be (C,) = ({channels},), got {tuple(vector.shape)}")
