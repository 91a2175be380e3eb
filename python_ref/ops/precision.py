"""The dtype in which softmax statistics and parameter gradients are kept."""

import torch
from torch import Tensor


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float32 for float32, bfloat16 and float16; float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)
