"""Build what runs on the host emulator: build/host_cuda/build.ninja, with one target each.

    VARIANT/_C.so                  the native library with its CUDA kernels emulated
    VARIANT/host_cuda_selftest.so  the emulator's own test kernels, a Python module (pybind11)
    VARIANT/wrappers.so            wrappers.cu emulated
    gpu/wrappers.so                wrappers.cu by nvcc

VARIANT is plain, asan (AddressSanitizer and UndefinedBehaviorSanitizer) or tsan (ThreadSanitizer).
Only kernels and emulator are instrumented; the files that see torch are compiled once for all.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
BUILD_DIR = ROOT / "build" / "host_cuda"

CUDA_HEADERS = ["vector_types.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target"]


class Unavailable(RuntimeError):
    """Something that the emulator needs is not on this machine; the message names it."""


@dataclass(frozen=True)
class Variant:
    """How kernels and the emulator's runtime are compiled."""

    kernel_flags: list[str]
    runtime_flags: list[str]
    link_flags: list[str]
    preload: list[str]  # libraries that must be in the process before Python is


# What is left out of UndefinedBehaviorSanitizer (null, object-size, ...) AddressSanitizer sees too.
_UBSAN = "alignment,bool,bounds,enum,integer-divide-by-zero,return,shift,signed-integer-overflow"
# -Og, and a call for every check instead of code in place, compile twice as fast as -O1 does.
_ASAN = ["-Og", "-g1", "-fno-omit-frame-pointer", f"-fsanitize=address,{_UBSAN}"]
_ASAN += ["-fno-sanitize-recover=undefined", "--param=asan-instrumentation-with-call-threshold=0"]
# The race detector must not see the runtime's own bookkeeping, nor loops turned into memset calls.
_TSAN_RUNTIME = ["-O2", "-g1", "-DHYBRID_EMULATOR_TSAN", "-fno-tree-loop-distribute-patterns"]

VARIANTS = {
    "plain": Variant(["-O2", "-g1"], ["-O2", "-g1"], [], []),
    "asan": Variant(_ASAN, _ASAN, ["-fsanitize=address,undefined"], ["libasan.so", "libubsan.so"]),
    "tsan": Variant(
        ["-O1", "-g1", "-fsanitize=thread", "-Wno-tsan"],
        _TSAN_RUNTIME,
        ["-fsanitize=thread"],
        ["libtsan.so"],
    ),
}


def _load_native_build() -> ModuleType:
    """csrc/build.py: how torch, compiler and CUDA are found, and the ordinary flags."""
    spec = importlib.util.spec_from_file_location("native_build", CSRC / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native = _load_native_build()
# Each starts processes to find out; the answer does not change while this one runs.
find_torch = functools.cache(native.find_torch)
find_compiler = functools.cache(native.find_compiler)
find_cuda = functools.cache(native.find_cuda)


def cuda_include_dirs() -> list[Path]:
    """Folders with CUDA's headers: of a toolkit (CUDA_HOME, nvcc's) or of pip's packages."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "include" for home in homes if home]
    if toolkit := find_cuda():
        candidates.append(toolkit.include)
    candidates.append(Path("/usr/local/cuda/include"))
    candidates += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"), reverse=True)
    for folder in candidates:
        folders = [folder, folder / "cccl"]
        if all(any((f / header).exists() for f in folders) for header in CUDA_HEADERS):
            return folders
    raise Unavailable(
        "the CUDA headers were not found: set CUDA_HOME to a toolkit, or"
        " pip install 'hybrid-kernels[nvcc]'"
    )


def sanitizer_libraries(variant: str) -> list[str]:
    """Paths of the libraries to preload for a process that loads this variant."""
    names = VARIANTS[variant].preload
    # Without libstdc++ in front of it, a sanitizer finds no __cxa_throw to wrap.
    return [_compiler_library(name) for name in [*names, "libstdc++.so.6"]] if names else []


def _compiler_library(name: str) -> str:
    command = [*find_compiler().split(), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise Unavailable(f"{command[0]} has no {name}: install the sanitizer libraries of g++")
    return path


class _Ninja:
    """Collects build statements and the rules they use."""

    def __init__(self, cuda_folders: list[Path]) -> None:
        self.cxx = find_compiler()
        self.cuda = [f"-isystem{folder}" for folder in cuda_folders]
        self.lines = [
            "ninja_required_version = 1.5",
            "rule compile",
            f"  command = {self.cxx} -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "rule link",
            f"  command = {self.cxx} -shared $in -o $out $flags",
            "rule nvcc",
            "  command = $nvcc -shared $flags $in -o $out",
        ]

    def add(self, rule: str, output: str, sources: list[str], **variables: str) -> str:
        self.lines.append(f"build {output}: {rule} {' '.join(sources)}")
        self.lines += [f"  {name} = {value}" for name, value in variables.items()]
        return output

    def compile(self, output: str, source: Path, flags: list[str]) -> str:
        return self.add("compile", output, [str(source)], flags=" ".join(flags))

    def emulated(self, variant: str, name: str, source: Path) -> str:
        """A .cu file, by the C++ compiler."""
        flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
        flags += [f"-I{CSRC}", f"-I{HERE}/emulator", *self.cuda, "-DHYBRID_HOST_EMULATOR"]
        return self.compile(
            f"{variant}/{name}.o", source, [*flags, *VARIANTS[variant].kernel_flags, "-x c++"]
        )

    def runtime(self, variant: str) -> list[str]:
        flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *self.cuda]
        flags += VARIANTS[variant].runtime_flags
        sources = sorted((HERE / "emulator").glob("*.cpp"))
        return [self.compile(f"{variant}/runtime/{s.stem}.o", s, flags) for s in sources]


# An op without CUDA kernels keeps its CPU ones, so that the package finds all ops. No test of the
# emulated library runs them: one instruction set. What is no CUDA kernel is compiled fast.
ISA = "baseline"
HOST_FLAGS = [*native.CXX_FLAGS, "-O0", f"-I{CSRC}"]


def _torch_flags(emulated: bool) -> list[str]:
    torch = find_torch()
    flags = [*HOST_FLAGS, f"-isystem{torch}/include"]
    flags += [f"-isystem{torch}/include/torch/csrc/api/include"]
    flags += [f"-DTORCH_TARGET_VERSION={native.TORCH_TARGET_VERSION}"]
    flags += [native.isas_flag([ISA])]
    return [*flags, "-DHYBRID_WITH_CUDA", "-DHYBRID_HOST_EMULATOR"] if emulated else flags


def _add_torch_objects(ninja: _Ninja, ops: list[Path]) -> list[str]:
    """The files that no variant changes."""
    objects = []
    for op in ops:
        has_cuda = bool(native.cuda_sources(op))
        source = op / f"{op.name}.cpp"
        objects.append(ninja.compile(f"torch/{op.name}.o", source, _torch_flags(has_cuda)))
        for kernels in () if has_cuda else native.cpu_sources(op):
            flags = [*HOST_FLAGS, f"-DHYBRID_ISA={ISA}"]
            objects.append(ninja.compile(f"torch/{kernels.stem}.o", kernels, flags))
    for source in sorted((CSRC / "common").glob("*.cpp")):
        objects.append(ninja.compile(f"torch/common_{source.stem}.o", source, _torch_flags(True)))
    return objects


def _add_library(
    ninja: _Ninja, variant: str, ops: list[Path], torch_objects: list[str], runtime: list[str]
) -> None:
    objects = [*torch_objects, *runtime]
    for source in sorted(CSRC.glob("*.cpp")):  # they include build_info.h, which names the variant
        flags = [*_torch_flags(True), f"-I{variant}"]
        objects.append(ninja.compile(f"{variant}/{source.stem}.o", source, flags))
    for op in ops:
        for kernels in native.cuda_sources(op):
            objects.append(ninja.emulated(variant, kernels.stem, kernels))
    flags = [*VARIANTS[variant].link_flags, f"-L{find_torch()}/lib", "-Wl,--no-as-needed"]
    flags += ["-ltorch", "-ltorch_cpu", "-ldl", "-lpthread"]
    ninja.add("link", f"{variant}/_C.so", objects, flags=" ".join(flags))


def _write_build_info(build_dir: Path, variant: str) -> None:
    library = native.Library(
        build_dir, build_dir, find_torch(), find_compiler(), emulator=variant, isas=(ISA,)
    )
    info = json.dumps(native.build_info(library), indent=2)
    header = f'constexpr char kBuildInfo[] = R"json({info})json";\n'
    native.write_if_changed(build_dir / variant / "build_info.h", header)


@functools.cache
def _write_ninja(build_dir: Path) -> None:
    ninja = _Ninja(cuda_include_dirs())
    ops = native.find_ops()
    torch_objects = _add_torch_objects(ninja, ops)
    module_flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden"]
    module_flags += [f"-isystem{sysconfig.get_path('include')}", f"-isystem{_pybind11_include()}"]
    module = ninja.compile("selftest_module.o", HERE / "selftest" / "module.cpp", module_flags)
    for variant, settings in VARIANTS.items():
        runtime = ninja.runtime(variant)
        _write_build_info(build_dir, variant)
        _add_library(ninja, variant, ops, torch_objects, runtime)
        for name, source, more in (
            ("host_cuda_selftest", HERE / "selftest" / "launchers.cu", [module]),
            ("wrappers", HERE / "wrappers.cu", []),
        ):
            objects = [ninja.emulated(variant, name, source), *more, *runtime]
            flags = " ".join(settings.link_flags)
            ninja.add("link", f"{variant}/{name}.so", objects, flags=flags)
    _add_gpu_wrappers(ninja)
    native.write_if_changed(build_dir / "build.ninja", "\n".join(ninja.lines) + "\n")


def _pybind11_include() -> str:
    import pybind11

    return pybind11.get_include()


def _add_gpu_wrappers(ninja: _Ninja) -> None:
    if toolkit := find_cuda():
        flags = f"-std=c++17 -O2 -I{CSRC} -Xcompiler=-fPIC {os.environ.get('HYBRID_NVCC_ARCH', '')}"
        source = str(HERE / "wrappers.cu")
        ninja.add("nvcc", "gpu/wrappers.so", [source], nvcc=str(toolkit.nvcc), flags=flags)


def _build(target: str, build_dir: Path) -> Path:
    import ninja

    build_dir.mkdir(parents=True, exist_ok=True)
    with open(build_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test workers may ask at once
        _write_ninja(build_dir)
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "--quiet", "-C", str(build_dir), target]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise native.BuildError(f"{target} was not built:\n{result.stdout}{result.stderr}")
    return build_dir / target


def build_library(variant: str, out_dir: Path = BUILD_DIR) -> Path:
    """The native library, for HYBRID_KERNELS_LIBRARY: CUDA kernels emulated, for CPU tensors."""
    return _build(f"{variant}/_C.so", out_dir)


def build_selftest(variant: str, out_dir: Path = BUILD_DIR) -> Path:
    """The Python module of the emulator's own test kernels."""
    return _build(f"{variant}/host_cuda_selftest.so", out_dir)


def build_wrappers(where: str, out_dir: Path = BUILD_DIR) -> Path:
    """wrappers.cu as a library for ctypes; `where` is a variant or "gpu" (needs nvcc)."""
    if where == "gpu" and find_cuda() is None:
        raise Unavailable("nvcc was not found: set CUDA_HOME to a CUDA toolkit")
    return _build(f"{where}/wrappers.so", out_dir)
