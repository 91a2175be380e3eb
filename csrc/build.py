"""Build the native library: write build.ninja, run ninja.

    python csrc/build.py                       hybrid_kernels/_C.so, in place
    python csrc/build.py --help                another place, a second build folder

Sources are found by convention, so a new op needs no entry here:

    csrc/*.cpp, csrc/common/*.cpp, csrc/<op>/<op>.cpp   once, with the headers of torch's stable ABI
    csrc/<op>/<op>_cpu*.cpp                             once per instruction set, without torch
    csrc/<op>/<op>_cuda*.cu                             by nvcc, where there is one; <op>.cpp then
                                                        sees HYBRID_WITH_CUDA

An op whose kernels take long to compile is cut by direction or data type, for instance into
<op>_cuda_forward_f32.cu: a change to any one file should be rebuilt within ten seconds.
What most files begin with is precompiled: precompiled.py.

torch is never imported: only its headers and libraries are used, and only its stable ABI, so one
library serves every Python and every torch >= 2.10.

Environment: CXX, CUDA_HOME, HYBRID_TORCH_DIR (the folder of the torch package),
HYBRID_CUDA=auto|0|1, MAX_JOBS. Fewer of these compile sooner, "native" are those of this machine:
HYBRID_CUDA_ARCHS="80;90;100" or "native", HYBRID_CPU_ISAS="avx2;avx512_bf16" or "native"; the
baseline is always there.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # however this file is loaded
from instruction_sets import ALL_CPU_ISAS, CPU_ISAS, effort_flags, isas_flag
from precompiled import INTRINSICS, TORCH, Headers, write_if_changed

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
BUILD_DIR = ROOT / "build" / "native"
IN_PLACE = ROOT / "hybrid_kernels" / "_C.so"

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10: the oldest torch that the library runs on

# Errors and traps of floating point are never looked at, and both would forbid vector code; NaN
# and infinity keep their meaning, so no -ffast-math.
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]

CUDA_ARCHS = ["80", "90", "100"]


class BuildError(RuntimeError):
    """The build cannot start or failed; the message says what to do."""


@dataclass
class Cuda:
    """A CUDA toolkit and what to build with it."""

    nvcc: Path
    home: Path
    version: str
    archs: list[str]

    @property
    def include(self) -> Path:
        return self.home / "include"

    def library_dir(self) -> Path:
        for folder in ("lib64", "lib", *(f"targets/{m}-linux/lib" for m in ("x86_64", "sbsa"))):
            if (self.home / folder / "libcudart_static.a").exists():
                return self.home / folder
        raise BuildError(
            f"libcudart_static.a was not found below {self.home}: install the CUDA runtime's"
            " development files, or build without CUDA: HYBRID_CUDA=0."
        )


@dataclass
class Library:
    """What to build, of what."""

    output: Path
    build_dir: Path
    torch_dir: Path
    cxx: str
    cuda: Cuda | None = None
    emulator: str | None = None  # set by tests/host_cuda, which links libraries of its own
    cpu_flags: tuple[str, ...] = ()  # more, for the CPU kernels alone: tests/cpu_asan.py
    borrowed: tuple[str, ...] = ()  # endings of CPU kernels taken from BUILD_DIR as they are
    link_flags: tuple[str, ...] = ()
    isas: tuple[str, ...] = tuple(CPU_ISAS)


def find_torch() -> Path:
    """Folder of the torch package that the library will run with."""
    if named := os.environ.get("HYBRID_TORCH_DIR"):
        if (Path(named) / "include").is_dir():
            return Path(named)
        raise BuildError(f"HYBRID_TORCH_DIR={named} is not a torch package: no include/ in it.")
    code = "import importlib.util as u; s = u.find_spec('torch');"
    code += "print(s.submodule_search_locations[0] if s else '')"
    # pip hides the target environment from an isolated build by PYTHONPATH; -I looks past that.
    for options in ([], ["-I"]):
        command = [sys.executable, *options, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, cwd="/").stdout.strip()
        if found:
            return Path(found)
    raise BuildError(
        f"hybrid_kernels is built against torch >= 2.10, which {sys.executable} does not have.\n"
        "Install it, then try again:  pip install 'torch>=2.10'\n"
        "For a torch elsewhere, set HYBRID_TORCH_DIR=/path/to/site-packages/torch."
    )


def find_compiler() -> str:
    """The C++ compiler: CXX, or the first of g++, c++, clang++ that is there."""
    named = os.environ.get("CXX")
    found = named or next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
    advice = (
        "hybrid_kernels needs a C++17 compiler (g++ >= 10 or clang++ >= 10).\n"
        "Install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++),"
        " or set CXX to one, then try again."
    )
    if found is None:
        raise BuildError(f"No C++ compiler was found.\n{advice}")
    probe = "#include <optional>\ntemplate <class T> constexpr bool f() { return sizeof(T) > 1; }\n"
    probe += "int main() { if constexpr (f<int>()) return std::optional<int>(0).value(); }\n"
    options = ["-std=c++17", *list(CPU_ISAS.values())[-1], "-x", "c++", "-fsyntax-only", "-"]
    try:
        test = subprocess.run(
            [*found.split(), *options], input=probe, capture_output=True, text=True
        )
    except OSError as error:
        raise BuildError(f"The C++ compiler {found!r} does not run: {error}.\n{advice}") from None
    if test.returncode != 0:
        raise BuildError(f"The C++ compiler {found!r} fails:\n{test.stderr}\n{advice}")
    return found


def find_cuda() -> Cuda | None:
    """The CUDA toolkit, or None where there is none or HYBRID_CUDA=0 forbids it."""
    wish = os.environ.get("HYBRID_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"HYBRID_CUDA={wish}: expected auto, 0 or 1.")
    if wish == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    installed_by_pip = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc")
    candidates += sorted(map(str, installed_by_pip), reverse=True)
    nvcc = next((found for c in candidates if (found := shutil.which(c))), None)
    if nvcc is None:
        if wish == "1":
            raise BuildError(
                "HYBRID_CUDA=1, but no nvcc was found. Install the CUDA toolkit and set CUDA_HOME"
                " to its folder, or pip install 'hybrid-kernels[nvcc]', or build without CUDA:"
                " HYBRID_CUDA=0."
            )
        return None
    # nvcc may be a wrapper script or a link: only it knows where its toolkit lies.
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    dry_run = _output(command)
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    release = re.search(r"release (\d+\.\d+)", _output([nvcc, "--version"]))
    if top is None or release is None:
        raise BuildError(f"{nvcc} does not run:\n{dry_run}\nHYBRID_CUDA=0 does without it.")
    return Cuda(Path(nvcc), Path(top[1]).resolve(), release[1], _cuda_archs(nvcc))


def _cuda_archs(nvcc: str) -> list[str]:
    """HYBRID_CUDA_ARCHS, or those of the usual ones that this nvcc knows."""
    named = os.environ.get("HYBRID_CUDA_ARCHS")
    if named and named != "native":
        archs = named.split(";")
        if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
            message = "expected native or numbers, as in 80;90;100."
            raise BuildError(f"HYBRID_CUDA_ARCHS={named}: {message}")
        return archs
    known = re.findall(r"sm_(\d+)", _output([nvcc, "--list-gpu-code"]))
    usual = [arch for arch in CUDA_ARCHS if arch in known]
    mine = gpu_archs() if named else []
    # A GPU that nvcc or the kernels do not know may still run the usual ones' PTX.
    is_known = mine and all(arch in known and int(arch) >= int(usual[0]) for arch in mine)
    return mine if is_known else usual


def gpu_archs() -> list[str]:
    """The architectures of the GPUs in this machine: none without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    capabilities = _output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    found = re.findall(r"^(\d+)\.(\d)$", capabilities, re.MULTILINE)
    return sorted({major + minor for major, minor in found}, key=int)


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout + result.stderr


def find_library(output: Path = IN_PLACE, build_dir: Path = BUILD_DIR) -> Library:
    """The ordinary library, with the torch, compiler and CUDA toolkit of this machine."""
    return Library(output, build_dir, find_torch(), find_compiler(), find_cuda())


def package_version() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    return re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1]


def build_info(library: Library) -> dict[str, object]:
    """What hybrid_build_info() reports."""
    cuda = library.cuda
    return {
        "version": package_version(),
        "compiler": _output([*library.cxx.split(), "--version"]).splitlines()[0],
        "cpu_isas": library.isas,
        "cuda_version": cuda.version if cuda else None,
        "cuda_archs": cuda.archs if cuda else None,
        "torch_target_version": TORCH_TARGET_VERSION,
        "emulator": library.emulator,
    }


def write_ninja(library: Library) -> None:
    """Write build.ninja and the generated header into library.build_dir."""
    from ninja import ninja_syntax

    info = json.dumps(build_info(library), indent=2)
    header = f'// Generated by build.py.\nconstexpr char kBuildInfo[] = R"json({info})json";\n'
    write_if_changed(library.build_dir / "build_info.h", header)
    with open(library.build_dir / "build.ninja.new", "w") as file:
        ninja = ninja_syntax.Writer(file, width=100)
        _write_rules(ninja, library)
        ninja.build("_C.so", "link", _write_objects(ninja, library))
        ninja.default("_C.so")
    # In one step, and only when it changed: ninja keeps its log beside it.
    text = (library.build_dir / "build.ninja.new").read_text()
    (library.build_dir / "build.ninja.new").unlink()
    write_if_changed(library.build_dir / "build.ninja", text)


def _write_rules(ninja, library: Library) -> None:
    torch = library.torch_dir
    torch_flags = ["-I.", f"-isystem{torch}/include"]
    torch_flags += [f"-isystem{torch}/include/torch/csrc/api/include"]
    torch_flags += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    torch_flags += [isas_flag(library.isas)]
    link_flags = [f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-ldl"]
    link_flags += ["-lpthread", "-Wl,--exclude-libs,ALL", "-Wl,--no-undefined"]
    if library.cuda:
        link_flags += [f"-L{library.cuda.library_dir()}", "-lcudart_static", "-lrt"]
        _write_nvcc_rule(ninja, library)
    compile_cxx = f"{library.cxx} -MD -MF $out.d {_join(CXX_FLAGS)} -I{CSRC}"
    torch_rule = f"{compile_cxx} {_join(torch_flags)} $op_flags $header -c $in -o $out"
    ninja.rule("torch", torch_rule, depfile="$out.d")
    cpu_flags = _join(["-fno-exceptions", "$isa_flags", *library.cpu_flags])
    ninja.rule("cpu", f"{compile_cxx} {cpu_flags} $header -c $in -o $out", depfile="$out.d")
    link_flags += library.link_flags
    ninja.rule("link", f"{library.cxx} -shared $in -o $out {_join(link_flags)}")


def _write_nvcc_rule(ninja, library: Library) -> None:
    cuda = library.cuda
    # --threads=0: one process per architecture at a time, as many as there are cores.
    nvcc_flags = ["-std=c++17", "-O3", "--threads=0", f"-ccbin={library.cxx}", f"-I{CSRC}"]
    nvcc_flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "-Xfatbin=-compress-all"]
    nvcc_flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in cuda.archs]
    last = cuda.archs[-1]  # as PTX too, for GPUs yet to come
    nvcc_flags += [f"-gencode=arch=compute_{last},code=compute_{last}"]
    # ptxas reports registers and spills to stderr: kept beside the object, shown on failure.
    command = f"{cuda.nvcc} -MD -MF $out.d {_join(nvcc_flags)} -c $in -o $out 2> $out.ptxas"
    ninja.rule("cuda", f"{command} || (cat $out.ptxas >&2; exit 1)", depfile="$out.d")


def find_ops() -> list[Path]:
    """The folders of the operators."""
    return sorted(path.parent for path in CSRC.glob("*/*.cpp") if path.stem == path.parent.name)


def cpu_sources(op: Path) -> list[Path]:
    """What is compiled once per instruction set."""
    return sorted(op.glob(f"{op.name}_cpu*.cpp"))


def cuda_sources(op: Path) -> list[Path]:
    """What nvcc compiles."""
    return sorted(op.glob(f"{op.name}_cuda*.cu"))


def _write_objects(ninja, library: Library) -> list[str]:
    objects: list[str] = []
    precompiled = Headers(ninja, library.build_dir, library.cxx)

    def add(
        rule: str, source: Path, name: str, implicit: str | None = None, **variables: str
    ) -> None:
        objects.append(f"{name}.o")
        ninja.build(objects[-1], rule, str(source), implicit=implicit, variables=variables)

    ops = find_ops()
    for op in ops:  # first the files that take longest
        for source in cuda_sources(op) if library.cuda else ():
            add("cuda", source, f"{op.name}/{source.stem}")
        for source, isa in itertools.product(cpu_sources(op), library.isas):
            name = f"{op.name}/{source.stem}.{isa}"
            if source.stem.endswith(library.borrowed):
                objects.append(str(BUILD_DIR / f"{name}.o"))
                continue
            add("cpu", source, name, **_cpu_variables(precompiled, source, isa))
    for op in ops:
        op_flags = "-DHYBRID_WITH_CUDA" if library.cuda and cuda_sources(op) else ""
        first = precompiled.include("torch", TORCH, "torch", {})
        add("torch", op / f"{op.name}.cpp", f"{op.name}/{op.name}", op_flags=op_flags, **first)
    for source in sorted([*CSRC.glob("*.cpp"), *(CSRC / "common").glob("*.cpp")]):
        add("torch", source, str(source.relative_to(CSRC).with_suffix("")))
    return objects


def _cpu_variables(precompiled: Headers, source: Path, isa: str) -> dict[str, str]:
    """Flags of a kernel's file, and the header that it begins with."""
    effort = effort_flags(source, isa)
    flags = {"isa_flags": _join([*ALL_CPU_ISAS[isa], *effort, f"-DHYBRID_ISA={isa}"])}
    if not ALL_CPU_ISAS[isa]:  # no intrinsics
        return flags
    name = f"{isa}.rare" if effort else isa
    return flags | precompiled.include(name, INTRINSICS, "cpu", flags)


def _join(flags: list[str]) -> str:
    return " ".join(flags)


def build(library: Library, verbose: bool = False) -> Path:
    """Bring library.output up to date and return it."""
    import ninja

    library.build_dir.mkdir(parents=True, exist_ok=True)
    with open(library.build_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test workers may ask at once
        write_ninja(library)
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(library.build_dir)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        if verbose:
            command += ["-v"]
        if subprocess.run(command).returncode != 0:
            raise BuildError(
                "The native build failed; the compiler's messages are above."
                + (
                    " If they are nvcc's: HYBRID_CUDA=0 builds without CUDA."
                    if library.cuda
                    else ""
                )
            )
        built = library.build_dir / "_C.so"
        if not library.output.exists() or not os.path.samefile(built, library.output):
            _install(built, library.output)
    return library.output


def _install(built: Path, output: Path) -> None:
    """Copy beside and rename: a process that has the old library mapped keeps it intact."""
    if output.exists() and output.stat().st_mtime_ns == built.stat().st_mtime_ns:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copy2(built, fresh)
    os.replace(fresh, output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the native library of hybrid_kernels.")
    parser.add_argument("--output", type=Path, default=IN_PLACE, help="the library to write")
    parser.add_argument("--build-dir", type=Path, default=BUILD_DIR, help="objects and build.ninja")
    parser.add_argument("-v", "--verbose", action="store_true", help="show every command")
    options = parser.parse_args()
    try:
        build(find_library(options.output, options.build_dir), options.verbose)
    except BuildError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
