"""The self-test's kernels on numpy arrays, checked against numpy.

As a program, for processes under a sanitizer:  cases.py MODULE BUG...  runs each with its mistake,
prints what was wrong and exits with 3 if anything was.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import numpy as np

# In the order of `enum class Bug` in kernels.h.
SOFTMAX_BUGS = ["no_sync", "divergent", "early_exit", "out_of_bounds", "shared_out_of_bounds"]
SOFTMAX_BUGS += ["no_warp_sync", "inter_block"]
FLASH_BUGS = ["flash_no_sync", "flash_short_wait", "flash_write_after_read", "shared_too_small"]
FLASH_BUGS += ["misaligned_rows", "divergent_mask"]
BUGS = ["none", *SOFTMAX_BUGS, *FLASH_BUGS]

SOFTMAX_SHAPES = [(3, 196), (2, 1), (2, 129)]
FLASH_SHAPES = [(2, 49, 49), (1, 100, 130), (1, 65, 1)]  # batch, queries, keys


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("host_cuda_selftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _nan_like(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan, np.float16)


def softmax_error(module: ModuleType, rows: int, n: int, bug: str) -> float:
    x = np.random.default_rng(rows * n).standard_normal((rows, n)).astype(np.float16)
    y = _nan_like(x.shape)
    module.softmax(x.view(np.uint16), y.view(np.uint16), BUGS.index(bug))
    return float(np.abs(y - _softmax(x.astype(np.float64))).max())


def flash_error(module: ModuleType, batch: int, queries: int, keys: int, bug: str) -> float:
    rng = np.random.default_rng(queries * keys)
    q, k, v = (
        rng.standard_normal((batch, length, 32)).astype(np.float16)
        for length in (queries, keys, keys)
    )
    out = _nan_like(q.shape)
    words = [a.view(np.uint16) for a in (q, k, v, out)]
    module.flash(*words, 32**-0.5, BUGS.index(bug))
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    return float(np.abs(out - _softmax(q @ k.swapaxes(1, 2) * 32**-0.5) @ v).max())


def problems(module: ModuleType, bug: str) -> list[str]:
    """Every wrong value and every refused launch of the kernels that can have this mistake."""
    found = []
    cases = [(softmax_error, s) for s in SOFTMAX_SHAPES if bug not in FLASH_BUGS]
    cases += [(flash_error, s) for s in FLASH_SHAPES if bug not in SOFTMAX_BUGS]
    for error_of, shape in cases:
        name = f"{error_of.__name__.removesuffix('_error')}{shape}"
        try:
            error = error_of(module, *shape, bug)
        except RuntimeError as problem:
            found.append(f"{name}: {problem}")
            continue
        if not error < 2e-3:  # also when it is NaN
            found.append(f"{name}: wrong by {error:.2g}")
    return found


if __name__ == "__main__":
    selftest = load(sys.argv[1])
    messages = [f"{bug}: {text}" for bug in sys.argv[2:] for text in problems(selftest, bug)]
    print("\n".join(messages))
    sys.exit(3 if messages else 0)
