"""Run Python with CPU kernels under ASan and UBSan: a store outside an output is then seen.

    python tests/cpu_asan.py                                   values and gradients of every op
    python tests/cpu_asan.py -m pytest tests/test_gated_fuse.py

Builds the library with instrumented CPU kernels, sets HYBRID_KERNELS_LIBRARY and runs Python with
the arguments. Kernels that have a file of their own for float16 or float64 are not instrumented
there: their code is that of bfloat16 and float32, and the tests of every op leave these types out.
Exit status: that of Python, or 1 when a sanitizer found something.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from host_cuda import run
from host_cuda.build import ROOT, Unavailable, native

BUILD_DIR = ROOT / "build" / "cpu-asan"
# Only what concerns memory, and shifts and indices that lead there: kernels may divide by zero.
_UBSAN = "alignment,bool,bounds,enum,return,shift,signed-integer-overflow,unreachable"
BORROWED = ("_f16", "_f64")
VALUES = "test_values_and_gradients and (float32 or bfloat16)"
SANITIZE = f"-fsanitize=address,{_UBSAN}"
# -Og, and a call for every check instead of code in place, compile three times as fast as -O1 does.
# -w: with little optimisation the compiler says of every loop that it does not unroll it.
CPU_FLAGS = (
    "-Og",
    "-w",
    "-g1",
    "-fno-omit-frame-pointer",
    SANITIZE,
    "-fno-sanitize-recover=undefined",
    "--param=asan-instrumentation-with-call-threshold=0",
)


def instruction_sets() -> tuple[str, ...]:
    """Without plain AVX-512 where the processor multiplies bfloat16: all other code is the same."""
    has_products = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    return tuple(isa for isa in native.CPU_ISAS if not (isa == "avx512" and has_products))


def build_library():
    """The ordinary library without CUDA, its CPU kernels instrumented."""
    ordinary = native.find_library()
    native.build(ordinary)
    sanitized = dataclasses.replace(
        ordinary,
        output=BUILD_DIR / "sanitized.so",
        build_dir=BUILD_DIR,
        cuda=None,
        isas=instruction_sets(),
        cpu_flags=CPU_FLAGS,
        borrowed=BORROWED,
        link_flags=("-Wl,-z,undefs",),  # the sanitizers' functions come with the preloaded library
    )
    return native.build(sanitized)


def build_faults(isa: str) -> Path:
    """cpu_faults.cpp, compiled as the CPU kernels are: a library for ctypes."""
    output = BUILD_DIR / f"cpu_faults.{isa}.so"
    fresh = output.with_suffix(f".{os.getpid()}")  # another test worker may load what is there
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    command = [*native.find_compiler().split(), *native.CXX_FLAGS, "-fno-exceptions", *CPU_FLAGS]
    command += [*native.CPU_ISAS[isa], f"-DHYBRID_ISA={isa}", f"-I{native.CSRC}", "-shared"]
    source = ROOT / "tests" / "cpu_faults.cpp"
    subprocess.run([*command, str(source), "-o", str(fresh)], check=True)
    return fresh.replace(output)


def main() -> int:
    ops = sorted(path.parent.name for path in native.CSRC.glob("*/*_cpu.cpp"))
    tests = [f"tests/test_{op}.py" for op in ops]
    arguments = sys.argv[1:] or ["-m", "pytest", "-q", "-k", VALUES, *tests]
    try:
        environment = {"HYBRID_KERNELS_LIBRARY": str(build_library())}
        status, reports = run.run_python("asan", arguments, environment)
    except Unavailable as reason:
        print(f"skipped: no sanitizer for the CPU kernels, {reason}")
        return 0
    if reports:
        print(reports, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
