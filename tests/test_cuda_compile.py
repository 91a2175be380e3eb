"""What ptxas and the disassembler say about the CUDA kernels; no GPU needed.

A kernel that outgrows its registers still computes the right numbers, only slowly, through local
memory. cuda_spills.json lists the kernels that may, each with the reason and a limit:

    {"<part of the demangled name>": {"archs": ["sm_80"], "bytes": 16, "reason": "..."}}
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = json.loads((ROOT / "tests" / "cuda_spills.json").read_text())
ARCHS = ["sm_80", "sm_90", "sm_100"]
OPS = sorted(path.parent.name for path in ROOT.glob("csrc/*/*_cuda.cu"))

# Parts of the names of the kernels that do matrix products: in their 16-bit form these must use
# the tensor cores.
TENSOR_CORE_KERNELS = {
    "abstract_token_attention": ["forward", "backward"],
    "atrous_attention": ["forward", "backward"],
    "conv_attention_fused": ["linear", "outer", "gather", "window_gradient"],
    "multiscale_attention": ["forward", "backward"],
    "single_query_attention": ["forward", "backward"],
}


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture, as ptxas reports it."""

    name: str  # demangled
    arch: str
    registers: int
    local_bytes: int  # stack frame: spilled registers and arrays that are indexed at run time
    spill_bytes: int


@pytest.fixture(scope="module")
def objects() -> Path:
    """Folder of the compiled objects, up to date, with CUDA."""
    if os.environ.get("HYBRID_CUDA") == "0":
        pytest.skip("HYBRID_CUDA=0: the library is built without CUDA")
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "csrc" / "build.py")
    native_build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = native_build
    spec.loader.exec_module(native_build)
    library = native_build.find_library()
    if library.cuda is None:
        pytest.skip("no nvcc here, and none by pip: pip install 'hybrid-kernels[nvcc]'")
    native_build.build(library)
    return library.build_dir


def demangle(names: list[str]) -> list[str]:
    filtered = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return filtered.stdout.splitlines()


def object_files(objects: Path, op: str) -> list[Path]:
    sources = sorted(ROOT.glob(f"csrc/{op}/{op}_cuda*.cu"))
    return [objects / op / f"{source.stem}.o" for source in sources]


@functools.cache
def kernels(objects: Path, op: str) -> list[Kernel]:
    log = "".join(Path(f"{path}.ptxas").read_text() for path in object_files(objects, op))
    found = re.findall(
        r"Compiling entry function '(\S+)' for '(\S+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        log,
        re.DOTALL,
    )
    names = demangle([entry[0] for entry in found])
    return [
        Kernel(name, arch, int(registers), int(stack), int(stores) + int(loads))
        for name, (_, arch, stack, stores, loads, registers) in zip(names, found, strict=True)
    ]


def allowance(kernel: Kernel) -> int:
    """Bytes of local memory that the list grants this kernel."""
    return max(
        (entry["bytes"] for part, entry in ALLOWED.items() if grants(part, entry, kernel)),
        default=0,
    )


def grants(part: str, entry: dict, kernel: Kernel) -> bool:
    return part in kernel.name and kernel.arch in entry["archs"]


def cuobjdump() -> str | None:
    """Disassembler of the toolkit, or the one that triton brings along."""
    if on_path := shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump"):
        return on_path
    triton = importlib.util.find_spec("triton")
    folder = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton else ROOT
    return shutil.which(str(folder / "cuobjdump"))


@functools.cache
def instructions(objects: Path, op: str) -> dict[tuple[str, str], str]:
    """Machine code of every (arch, demangled kernel name)."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump here: pip install triton brings one")
    sass = ""
    for path in object_files(objects, op):
        command = [tool, "-sass", str(path)]
        sass += subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*(?:arch = (sm_\w+)|Function : (\S+))$", sass, flags=re.MULTILINE)[1:]
    code: dict[tuple[str, str], str] = {}
    arch = ""
    for new_arch, function, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        arch = new_arch or arch
        if function:
            code[arch, function] = body
    names = demangle([function for _, function in code])
    return {(a, n): body for ((a, _), body), n in zip(code.items(), names, strict=True)}


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_compiles_for_every_architecture(objects: Path, op: str):
    by_arch = {arch: {k.name for k in kernels(objects, op) if k.arch == arch} for arch in ARCHS}
    assert by_arch["sm_80"]
    assert by_arch["sm_80"] == by_arch["sm_90"] == by_arch["sm_100"]


@pytest.mark.parametrize("op", OPS)
def test_no_kernel_needs_local_memory_unless_the_list_says_why(objects: Path, op: str):
    over = [k for k in kernels(objects, op) if max(k.local_bytes, k.spill_bytes) > allowance(k)]
    assert not over, "\n".join(map(str, over))


def test_every_entry_of_the_list_is_still_needed_and_has_a_reason(objects: Path):
    everything = [kernel for op in OPS for kernel in kernels(objects, op)]
    for part, entry in ALLOWED.items():
        granted = [k for k in everything if grants(part, entry, k)]
        assert any(max(k.local_bytes, k.spill_bytes) > 0 for k in granted), part
        assert len(entry["reason"]) > 20, part


def is_16_bit(name: str) -> bool:
    return "__nv_bfloat16" in name or "__half" in name


@pytest.mark.parametrize("op", sorted(TENSOR_CORE_KERNELS))
def test_16_bit_matrix_products_run_on_the_tensor_cores(objects: Path, op: str):
    code = instructions(objects, op)
    for part in TENSOR_CORE_KERNELS[op]:
        chosen = {key: body for key, body in code.items() if part in key[1] and is_16_bit(key[1])}
        assert {arch for arch, _ in chosen} >= set(ARCHS), f"no 16-bit kernel {part!r}"
        without = [key for key, body in chosen.items() if "HMMA" not in body]
        assert not without


@pytest.mark.parametrize("op", OPS)
def test_float32_is_never_rounded_to_tf32(objects: Path, op: str):
    code = instructions(objects, op)
    assert code
    assert not [key for key, body in code.items() if "TF32" in body]
