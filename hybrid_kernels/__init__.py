"""Fused kernels for vision backbones that mix attention and convolution."""

import os

from .backends import get_backend, set_backend, use_backend
from .ops import atrous_attention

__version__ = "0.1.0"
__all__ = ["atrous_attention", "get_backend", "set_backend", "use_backend"]

set_backend(os.environ.get("HYBRID_KERNELS_BACKEND", "auto"))
