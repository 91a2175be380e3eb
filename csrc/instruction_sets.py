"""The instruction sets that CPU kernels are compiled for, with the compiler's flags of each."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
_AVX512 += ["-mprefer-vector-width=512"]
# g++ 12 warns of its own _mm512_undefined_ps(), a thousand times.
_AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
X86_ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": _AVX512,
    "avx512_bf16": [*_AVX512, "-mavx512bf16"],
}
# What /proc/cpuinfo calls the parts of every set, each beside those of the sets before it.
CPU_FEATURES = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_bf16": {"avx512_bf16"},
}
# What a CPU is rarely asked for compiles twice as fast: float16, float64, and x86 without AVX2.
# Peeled loops keep tiles in registers, as -O3 does.
RARE_FLAGS = ["-O2", "-fpeel-loops"]
ALL_CPU_ISAS = X86_ISAS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}


def _cpu_isas() -> dict[str, list[str]]:
    """Flags of the instruction sets to build: HYBRID_CPU_ISAS and the baseline, or all."""
    named = os.environ.get("HYBRID_CPU_ISAS")
    if named == "native":
        named = native_isa()
    wanted = {"baseline", *named.split(";")} if named else set(ALL_CPU_ISAS)
    if unknown := wanted - set(ALL_CPU_ISAS):
        expected = ";".join(ALL_CPU_ISAS)
        sys.exit(f"error: HYBRID_CPU_ISAS={named}: {unknown} unknown; expected some of {expected}.")
    return {isa: flags for isa, flags in ALL_CPU_ISAS.items() if isa in wanted}


def native_isa() -> str:
    """The highest instruction set of this machine; "" where it cannot be told, for all of them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    features = set(re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)[1].split())
    highest = "baseline"
    for isa in ALL_CPU_ISAS:
        if not CPU_FEATURES.get(isa, set()) <= features:
            break
        highest = isa
    return highest


CPU_ISAS = _cpu_isas()


def effort_flags(source: Path, isa: str) -> list[str]:
    """Of a CPU kernel's file: none for -O3."""
    is_rare = source.stem.endswith(("_f16", "_f64"))
    return RARE_FLAGS if is_rare or (isa == "baseline" and len(ALL_CPU_ISAS) > 1) else []


def isas_flag(isas: Iterable[str]) -> str:
    """For the files that choose between the sets at run time."""
    return f"-DHYBRID_BUILT_ISAS={sum(1 << list(ALL_CPU_ISAS).index(isa) for isa in isas)}"
