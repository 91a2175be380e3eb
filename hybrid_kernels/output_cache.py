"""Memory of large CPU outputs, kept for the next one of about the same size.

The first write to every page of a fresh output is a page fault, and they can cost more than the
kernel. Blocks of 1 MiB and more that an op's output has freed are therefore handed to the next one
(csrc/common/output_cache.h). Such a tensor cannot be enlarged by resize_; all else is as usual.
HYBRID_KERNELS_OUTPUT_CACHE_MB sets the limit for a process; 512 without it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ._native import _library


@dataclass(frozen=True)
class OutputCache:
    """What is kept, in MiB."""

    limit_mb: float  # the most that unused blocks may take
    kept_mb: float  # what they take now
    supported: bool  # false with torch < 2.11, where nothing is kept


def output_cache_info() -> OutputCache:
    """State of the cache of large CPU outputs."""
    return OutputCache(
        _library.hybrid_output_cache_limit() / 2**20,
        _library.hybrid_output_cache_kept() / 2**20,
        bool(_library.hybrid_output_cache_supported()),
    )


def set_output_cache(megabytes: float) -> None:
    """Keep at most this many MiB of freed outputs from now on; 0 keeps none.

    Tensors in use are not touched. Raises ValueError for a negative limit.
    """
    if not megabytes >= 0:
        raise ValueError(
            f"set_output_cache: megabytes is {megabytes}; expected 0 (keep nothing) or more"
        )
    _library.hybrid_set_output_cache_limit(int(megabytes * 2**20))


def empty_output_cache() -> None:
    """Return everything that is kept to the system; the limit stays."""
    limit = _library.hybrid_output_cache_limit()
    _library.hybrid_set_output_cache_limit(0)
    _library.hybrid_set_output_cache_limit(limit)


def limit_from_environment() -> None:
    """Take over HYBRID_KERNELS_OUTPUT_CACHE_MB, where it is set."""
    wish = os.environ.get("HYBRID_KERNELS_OUTPUT_CACHE_MB")
    if wish is None:
        return
    try:
        set_output_cache(float(wish))
    except ValueError:
        raise ValueError(
            f"HYBRID_KERNELS_OUTPUT_CACHE_MB={wish}: expected a number of MiB, 0 or more"
        ) from None
