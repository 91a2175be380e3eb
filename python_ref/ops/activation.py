"""The activations that operators apply on their way out, and their derivatives."""

import math

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "none": lambda t: t,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}
DERIVATIVES = {
    "none": torch.ones_like,
    "relu": lambda t: (t > 0).to(t.dtype),
    "relu6": lambda t: ((t > 0) & (t < 6)).to(t.dtype),
    "gelu": lambda t: (
        0.5 * (1 + torch.erf(t / math.sqrt(2)))
        + t * torch.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
    ),
    # PyTorch's values at the corners: 0 at -3 and 1 at 3, where the formula gives -0.5 and 1.5.
    "hardswish": lambda t: torch.where(t >= 3, 1.0, ((2 * t + 3) / 6) * (t > -3)),
}


def check_activation(act: str) -> None:
    """Raise ValueError unless act names an activation."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
