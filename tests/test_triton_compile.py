"""Triton kernels compiled ahead of time for GPUs that this machine need not have.

Every kernel is compiled with every setting in hybrid_kernels/configs for sm_80 and sm_90, with the
signature that its launcher would give it. Nothing may spill to the stack, the shared memory must
fit, and 16-bit attention must run on the tensor cores.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

# Only now: without triton, or under its interpreter, the tests are skipped.
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from hybrid_kernels.triton import launch, tune  # noqa: E402
from hybrid_kernels.triton.calls import calls, data  # noqa: E402

# Shared memory that one block may have, in bytes.
SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Launch(NamedTuple):
    """What a launcher passed to `launch`."""

    kernel: Any
    args: tuple
    meta: dict[str, Any]


class Usage(NamedTuple):
    """What a compiled kernel takes on the GPU."""

    registers: int
    stack: int
    shared: int
    matrix_instructions: int


# ---- launches ----------------------------------------------------------------------------------


def settings() -> Iterator[Any]:
    """Every (kernel, problem class, settings) of every file for GPUs, the same settings once."""
    seen = set()
    for path in sorted(launch.CONFIGS.glob("*.json")):
        if path.stem == "interpreter":
            continue
        for kernel, classes in json.loads(path.read_text()).items():
            for problem, chosen in classes.items():
                key = (kernel, problem, *sorted(chosen.items()))
                if key not in seen:
                    seen.add(key)
                    yield pytest.param(kernel, problem, chosen, id=f"{kernel}, {problem}")


def modules() -> Iterator[Any]:
    """The modules of launchers."""
    for path in sorted(Path(launch.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"hybrid_kernels.triton.{path.stem}")
        if module is not launch and hasattr(module, "launch"):
            yield module


@pytest.fixture
def launches(monkeypatch) -> list[Launch]:
    """The launches of the test, recorded instead of run."""
    recorded: list[Launch] = []

    def record(kernel, programs, like, *args, **meta):
        recorded.append(Launch(kernel, args, meta))

    for module in modules():
        monkeypatch.setattr(module, "launch", record)
    return recorded


# ---- compilation -------------------------------------------------------------------------------


def compile_for(recorded: Launch, arch: int) -> Any:
    """Compile a launch for an architecture, specialised to its arguments as at run time."""
    kernel, args, meta = recorded
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in meta.items() if name not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        else:
            is_special = not parameter.do_not_specialize
            signature[parameter.name] = describe(value, (i,), is_special, constants, attributes)
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={name: meta[name] for name in OPTIONS if name in meta},
    )


def describe(value: Any, path: tuple, is_special: bool, constants: dict, attributes: dict) -> Any:
    """Type of an argument; notes what is constant (None, 1) or divisible by 16 by its path."""
    if isinstance(value, tuple):
        parts = enumerate(value)
        return tuple(describe(v, (*path, i), is_special, constants, attributes) for i, v in parts)
    if isinstance(value, torch.Tensor):
        if value.storage_offset() * value.element_size() % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value is None or (is_special and value == 1):
        constants[path] = value
        return "constexpr"
    if is_special and value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def usage(compiled: Any, folder: Path) -> Usage:
    """Registers, stack and shared memory as the disassembler that comes with triton reports."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counts = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    assert counts, text
    registers, stack, static = map(int, counts.groups())
    ptx = compiled.asm["ptx"]
    matrix = ptx.count("mma.sync") + ptx.count("wgmma.mma_async")
    return Usage(registers, stack, max(static, compiled.metadata.shared), matrix)


# ---- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize(("kernel", "problem", "chosen"), list(settings()))
def test_kernel_compiles_without_spills(
    kernel, problem, chosen, arch, launches, tmp_path, monkeypatch, record_property
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with launch.watching() as used, launch.trying(kernel, problem, chosen):
        for call in calls(kernel):
            call(problem)
    assert (kernel, problem) in used
    mine = [each for each in launches if belongs(each.kernel, kernel)]
    assert mine, f"no launch of {kernel}"
    for each in mine:
        found = usage(compile_for(each, arch), tmp_path)
        record_property(f"{each.kernel.__name__} sm_{arch}", str(found))
        print(kernel, problem, f"sm_{arch}", found)
        assert found.stack == 0, f"spills: {found}"
        assert found.shared <= SHARED_LIMIT[arch], found
        if "_attention." in kernel and problem.startswith("16-bit"):
            assert found.matrix_instructions > 0, "no tensor cores"


def belongs(compiled: Any, name: str) -> bool:
    """Whether a kernel takes the settings of a name in the tables."""
    module = compiled.fn.__module__.rpartition(".")[2].removesuffix("_backward")
    if name == "atrous_partition.copy":
        return module == "atrous_partition"
    return f"{module}.{compiled.__name__}" == name


def test_cpu_tensors_are_refused_outside_the_interpreter():
    from hybrid_kernels.triton.atrous_partition import atrous_partition

    with pytest.raises(RuntimeError, match="on CPU tensors under TRITON_INTERPRET=1"):
        atrous_partition(torch.zeros(1, 4, 4, 2), 2, 1, 0.0)


def test_tuning_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="NVIDIA GPU"):
        tune.tune(["gated_fuse"])
    with pytest.raises(ValueError, match="unknown_op"):
        tune.tune(["unknown_op"])


def test_every_configured_kernel_is_tunable(launches):
    default = launch.table("default")
    assert set(tune.tunable()) == {(k, p) for k, classes in default.items() for p in classes}
    for kernel, problem in tune.tunable():
        with launch.watching() as used:
            for call in calls(kernel):
                call(problem)
        assert (kernel, problem) in used


def test_tuning_climbs_to_the_fastest_settings(launches, monkeypatch):
    kernel, problem = "token_fusion.by_query", "16-bit, e <= 32"
    wanted = {"QUERIES": 128, "KEYS": 16, "num_warps": 2, "num_stages": 3}

    def time(call):
        launches.clear()
        call()
        meta = next(each.meta for each in launches if belongs(each.kernel, kernel))
        return 1.0 + sum(abs(math.log2(meta[name] / best)) for name, best in wanted.items())

    monkeypatch.setattr(tune, "median_ms", time)
    monkeypatch.setattr(launch, "device_name", lambda device: "a_gpu_that_nobody_has_measured")
    best, before, after = tune.fastest(kernel, problem, torch.device("meta"))
    assert best == wanted
    assert before > after == 1.0


def test_repeated_calls_get_the_same_tensors():
    seen = []
    repeat = tune.repeatable([lambda problem: seen.append(data(2, 3))], "16-bit", "cpu")
    repeat()
    repeat()
    assert seen[0] is seen[1] and seen[0].isfinite().all()


def test_settings_of_an_unknown_device_are_the_defaults(monkeypatch):
    default = launch.table("default")
    monkeypatch.setattr(launch, "device_name", lambda device: "a_gpu_that_nobody_has_measured")
    for kernel, classes in default.items():
        for problem, chosen in classes.items():
            assert launch.settings(kernel, problem, torch.device("cuda")) == chosen


def test_a_table_survives_being_written():
    default = launch.table("default")
    assert json.loads(launch.dumps(default)) == default
    assert (launch.CONFIGS / "default.json").read_text() == launch.dumps(default)
