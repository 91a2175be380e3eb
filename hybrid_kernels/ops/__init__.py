"""The ops: one file each, its public function first."""

from .atrous_attention import atrous_attention

__all__ = ["atrous_attention"]
