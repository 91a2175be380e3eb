"""The compiled library: importing this module loads it, which defines torch.ops.hybrid.*.

Raises ImportError when the library was not built, or does not fit the installed torch.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from pathlib import Path
from typing import TypedDict

import torch


class BuildInfo(TypedDict):
    """How the library was built; None where there is no such part."""

    version: str
    compiler: str
    cpu_isas: list[str]
    cuda_version: str | None
    cuda_archs: list[str] | None
    torch_target_version: str
    emulator: str | None


def library_path() -> Path:
    """HYBRID_KERNELS_LIBRARY, or the library that was built into this package."""
    named = os.environ.get("HYBRID_KERNELS_LIBRARY")
    return Path(named) if named else Path(__file__).parent / "_C.so"


def _load(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise ImportError(
            f"hybrid_kernels has no compiled library: {path} does not exist. In a source checkout"
            " run `python csrc/build.py` or `pip install -e .`; if you installed the package, but"
            " Python finds the source folder first, start it from another folder."
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"The compiled library {path} does not load with torch {torch.__version__}: {error}."
            " It needs torch >= 2.10; if the library is stale, build it again: `pip install .`"
        ) from error
    library = ctypes.CDLL(str(path))  # a second handle on what load_library has just mapped
    library.hybrid_build_info.restype = ctypes.c_char_p
    library.hybrid_cpu_isa.restype = ctypes.c_char_p
    library.hybrid_set_cpu_isa.argtypes = [ctypes.c_char_p]
    library.hybrid_set_cpu_isa.restype = ctypes.c_int
    library.hybrid_set_output_cache_limit.argtypes = [ctypes.c_uint64]
    library.hybrid_set_output_cache_limit.restype = None
    library.hybrid_output_cache_limit.restype = ctypes.c_uint64
    library.hybrid_output_cache_kept.restype = ctypes.c_uint64
    return library


@functools.cache
def build_info() -> BuildInfo:
    """Compiler, instruction sets and CUDA architectures of the library."""
    return json.loads(_library.hybrid_build_info())


def cpu_isa() -> str:
    """The instruction set in use: "baseline", "avx2", "avx512" or "avx512_bf16"."""
    return _library.hybrid_cpu_isa().decode()


def multiscale_attention_fits_cache(queries: int, keys: int) -> bool:
    """Whether the CPU kernels work on a head as a whole; the emulator's library has none."""
    fits = _library.hybrid_multiscale_attention_fits_cache
    fits.argtypes, fits.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int
    return bool(fits(queries, keys))


def set_cpu_isa(name: str) -> None:
    """Lower the instruction set, or raise it again up to what the processor has.

    HYBRID_KERNELS_CPU_ISA sets it for a whole process. Raises ValueError for a name that the
    library was not built with or that this processor cannot run.
    """
    if _library.hybrid_set_cpu_isa(name.encode()) != 0:
        raise ValueError(
            f"set_cpu_isa: {name!r} is not an instruction set that this processor has; built are"
            f" {', '.join(build_info()['cpu_isas'])}, in use is {cpu_isa()}."
        )


_library = _load(library_path())
