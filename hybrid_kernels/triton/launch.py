"""Launching a Triton kernel: with which settings, and on which device.

Settings (tile sizes, warps, pipeline stages) are data: configs/<device>.json holds what
`hybrid-kernels tune` measured, configs/default.json what any other device gets, and
configs/interpreter.json the larger blocks that suit Triton's interpreter. All map a kernel to its
problem classes and a problem class to the keyword arguments of the launch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

Settings = dict[str, int]
Table = dict[str, dict[str, Settings]]

CONFIGS = Path(__file__).parent.parent / "configs"

_INT32_MAX = 2**31 - 1
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# What a tuner tries instead of the tables, and what it has seen looked up.
_trial: Table = {}
_seen: set[tuple[str, str]] | None = None


def settings(kernel: str, problem: str, device: torch.device) -> Settings:
    """Settings of a kernel for a class of problems: trial, measured on this device, or default."""
    if _seen is not None:
        _seen.add((kernel, problem))
    tables = (_trial, table(device_name(device)), table("default"))
    found = next(t[kernel][problem] for t in tables if problem in t.get(kernel, {}))
    return dict(found)


@functools.cache
def table(name: str) -> Table:
    """The settings in configs/<name>.json; empty where nobody has measured."""
    path = CONFIGS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def dumps(settings: Table) -> str:
    """A table as the text of a file in configs: one line for every problem class."""
    kernels = []
    for kernel, classes in settings.items():
        lines = [f"    {json.dumps(problem)}: {json.dumps(s)}" for problem, s in classes.items()]
        kernels.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def device_name(device: torch.device) -> str:
    """The name of a device as a file name, such as "nvidia_h200"; CPU tensors are interpreted."""
    if device.type != "cuda":
        return "interpreter"
    return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower())


@contextlib.contextmanager
def trying(kernel: str, problem: str, candidate: Settings) -> Iterator[None]:
    """Use a candidate instead of the tables' settings."""
    _trial[kernel] = {problem: candidate}
    try:
        yield
    finally:
        del _trial[kernel]


@contextlib.contextmanager
def watching() -> Iterator[set[tuple[str, str]]]:
    """Collect the (kernel, problem class) pairs that launches look up."""
    global _seen
    _seen = set()
    try:
        yield _seen
    finally:
        _seen = None


def launch(kernel: Any, programs: int, like: Tensor, *args: Any, **meta: Any) -> None:
    """Run a kernel in `programs` programs on the device and current stream of `like`.

    Raises RuntimeError for a CPU tensor outside the interpreter and for a grid beyond 2**31 - 1.
    """
    if like.device.type != "cuda" and isinstance(kernel, triton.runtime.JITFunction):
        raise RuntimeError(
            "backend 'triton' runs on CUDA tensors, or on CPU tensors under TRITON_INTERPRET=1 "
            f"(set before Python imports triton); got a tensor on {like.device}"
        )
    if programs > _INT32_MAX:
        raise RuntimeError(
            f"backend 'triton' would need {programs} programs, CUDA takes {_INT32_MAX}: "
            "split the batch"
        )
    if programs == 0:
        return
    guard = torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](*args, **meta)


def check_dtype(name: str, x: Tensor) -> None:
    """The kernels accumulate in float32: refuse what that would make silently less precise."""
    if x.dtype not in _DTYPES:
        raise RuntimeError(
            f"backend 'triton' takes float32, bfloat16 or float16, but {name} is "
            f"{str(x.dtype).removeprefix('torch.')}: use backend 'cpu' or 'reference'"
        )


def check_index(name: str, count: int) -> None:
    """Refuse what a 32-bit index cannot count; offsets in memory are 64-bit and need no check."""
    if count > _INT32_MAX:
        raise RuntimeError(
            f"backend 'triton' takes at most {_INT32_MAX} {name}, got {count}: split the batch"
        )
