"""Hold every wrapper's emulation against a real GPU: same inputs, same words out.

    python tests/host_cuda/compare_wrappers.py

Builds wrappers.cu by nvcc and by g++, prints a line per wrapper, exits with 1 on a difference. To
be run once on every new kind of GPU: the emulator's other tests only show that kernels agree with
the emulator.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from host_cuda import build

Run = Callable[[np.ndarray], np.ndarray]  # words in, words out

# Relative to max(1, |value|). Zero: the same bits.
ROUNDED_SUM = 3e-5  # tensor cores add in another order and truncate
FAST_MATHS = 4e-6


def load(library: Path) -> dict[str, Run]:
    """The wrappers of a built wrappers.so by name."""
    c = ctypes.CDLL(str(library))
    c.wrapper_name.restype = ctypes.c_char_p
    return {c.wrapper_name(i).decode(): _runner(c, i) for i in range(c.wrapper_count())}


def _runner(c: ctypes.CDLL, i: int) -> Run:
    def run(words: np.ndarray) -> np.ndarray:
        assert words.dtype == np.uint32 and words.size == c.wrapper_inputs(i)
        words = np.ascontiguousarray(words)
        out = np.full(c.wrapper_outputs(i), 0xDEADBEEF, np.uint32)
        error = c.wrapper_run(i, words.ctypes.data_as(_WORDS), out.ctypes.data_as(_WORDS))
        if error:
            raise RuntimeError(f"launch failed with cudaError_t {error}")
        return out

    return run


_WORDS = ctypes.POINTER(ctypes.c_uint32)


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16 (ties to even) of finite or infinite float32."""
    words = x.astype(np.float32).view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)


def cases(name: str) -> Iterator[tuple[np.ndarray, float]]:
    """Inputs of a wrapper, and how far two results may differ."""
    rng = np.random.default_rng(0)

    def words(n: int, end: int = 2**32) -> np.ndarray:
        return rng.integers(0, end, n, dtype=np.uint32)

    if name.startswith("ldmatrix"):
        yield words(128), 0
    elif name.startswith("mma"):
        yield _fragments(name, rng.integers(-8, 9, (32, 16)), words(1)), 0  # exact in float32
        yield _fragments(name, rng.standard_normal((32, 16)), words(1)), ROUNDED_SUM
    elif name == "cp_async16":
        yield words(256), 0
    elif name == "shuffles":
        yield np.concatenate([words(32), words(32, 32)]), 0
    elif name == "votes":
        for share in (0, 1, 2):  # none, half, all
            yield (words(128, 2) < share).astype(np.uint32), 0
    elif name == "atomics":
        yield words(128), 0
    elif name == "conversions":
        yield _floats_to_convert(rng), 0
    elif name == "bits":
        yield (
            np.concatenate([words(96), 1 << np.arange(31, dtype=np.uint32), [0]]).astype(np.uint32),
            0,
        )
    elif name == "fast_maths":
        yield rng.uniform(0.01, 10, 128).astype(np.float32).view(np.uint32), FAST_MATHS
    else:
        raise KeyError(f"no inputs for wrapper {name}")


def _fragments(name: str, elements: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Per lane 12 elements of a and b, in pairs, and 4 float32 of c."""
    elements = elements.astype(np.float32)
    bits = (
        round_to_bfloat16(elements)
        if "bfloat16" in name
        else elements.astype(np.float16).view(np.uint16)
    )
    pairs = bits[:, :12].astype(np.uint32)
    pairs = pairs[:, 0::2] | pairs[:, 1::2] << 16
    accumulators = np.random.default_rng(seed).integers(-99, 99, (32, 4)).astype(np.float32)
    return np.concatenate([pairs, accumulators.view(np.uint32)], axis=1).ravel()


def _floats_to_convert(rng: np.random.Generator) -> np.ndarray:
    special = [0.0, -0.0, np.inf, -np.inf, 65504.0, 65519.9, 65520.0, 1e-7, 6e-8, 2e-8, 3.4e38]
    special += [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11]  # ties
    ordinary = rng.standard_normal(128 - len(special)) * 10.0 ** rng.integers(-6, 6)
    return np.concatenate([special, ordinary]).astype(np.float32).view(np.uint32)


def difference(a: np.ndarray, b: np.ndarray, tolerance: float) -> str:
    """What differs, or nothing."""
    if tolerance == 0:
        wrong = np.flatnonzero(a != b)
        show = "{:08x}".format
    else:
        a, b = a.view(np.float32), b.view(np.float32)
        wrong = np.flatnonzero(~(np.abs(a - b) <= tolerance * np.maximum(1, np.abs(b))))
        show = "{:.9g}".format
    if wrong.size == 0:
        return ""
    i = wrong[0]
    return f"{wrong.size} of {a.size} words differ; word {i}: {show(a[i])}, emulated {show(b[i])}"


def compare(device: dict[str, Run], emulated: dict[str, Run]) -> list[str]:
    """Prints a line per wrapper; returns the names of those that differ."""
    different = []
    for name, run in device.items():
        found = ""
        for words, tolerance in cases(name):
            found = found or difference(run(words), emulated[name](words), tolerance)
        print(f"{name:22} {found or 'same'}", flush=True)
        if found:
            different.append(name)
    return different


def main() -> int:
    try:
        device, emulated = load(build.build_wrappers("gpu")), load(build.build_wrappers("plain"))
    except (build.Unavailable, build.native.BuildError) as problem:
        sys.exit(f"error: {problem}")
    return 1 if compare(device, emulated) else 0


if __name__ == "__main__":
    sys.exit(main())
