"""Measure launch settings on this machine's GPU and keep the best: `hybrid-kernels tune`.

What is tuned are the kernels and problem classes of configs/default.json, in the calls that
`calls` lists for them: no op needs a line here. From the settings in use, the tuner walks to the
fastest neighbour until none is faster, and writes the result to configs/<device>.json, which
launches read. Prove the kernels with their new settings by `hybrid-kernels check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from hybrid_kernels.triton.calls import Call, calls, tensors_from
from hybrid_kernels.triton.launch import (
    CONFIGS,
    Settings,
    Table,
    device_name,
    dumps,
    settings,
    table,
    trying,
)

FASTER = 0.98  # of the time so far: less is noise


def tune(ops: Sequence[str] = (), report: Callable[[str], None] = print) -> None:
    """Time the settings of every kernel and write the best to configs/<device>.json.

    Args:
        ops: names of modules of kernels, as in configs/default.json; all by default.
        report: takes one line of text per kernel and problem class.

    Raises:
        ValueError: an op has no Triton kernel.
        RuntimeError: torch sees no CUDA device.
    """
    known = sorted({_module(kernel) for kernel in table("default")})
    unknown = [op for op in ops if op not in known]
    if unknown:
        raise ValueError(f"ops = {list(ops)}: {unknown} not among {known}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "tune measures kernels on an NVIDIA GPU, and torch sees none here "
            "(torch.cuda.is_available() is False)"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    name = device_name(device)
    best = {kernel: dict(classes) for kernel, classes in table(name).items()}
    for kernel, problem in tunable(ops):
        chosen, before, after = fastest(kernel, problem, device)
        best.setdefault(kernel, {})[problem] = chosen
        _write(name, best)
        report(f"{kernel} [{problem}]: {before:.4f} -> {after:.4f} ms {chosen}")


def tunable(ops: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Kernels and problem classes that have settings, of some ops or of all."""
    for kernel, classes in table("default").items():
        if not ops or _module(kernel) in ops:
            yield from ((kernel, problem) for problem in classes)


def fastest(kernel: str, problem: str, device: torch.device) -> tuple[Settings, float, float]:
    """The best settings of a kernel, and the time of its calls before and after, in ms."""
    run = repeatable(calls(kernel), problem, device)
    best = settings(kernel, problem, device)
    before = least = median_ms(run)
    while True:
        timed = [(_time(run, kernel, problem, other), other) for other in neighbours(best)]
        time, other = min(timed, key=lambda pair: pair[0])
        if time >= FASTER * least:
            return best, before, least
        best, least = other, time


def neighbours(base: Settings) -> Iterator[Settings]:
    """Settings that differ from `base` in one number: by a factor of two, stages by one."""
    for name, value in base.items():
        others = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        yield from ({**base, name: other} for other in others if other > 0)


def repeatable(
    made_by: Sequence[Call], problem: str, device: torch.device | str
) -> Callable[[], None]:
    """A function that makes the calls, every time on the same tensors."""
    tensors: list[Tensor] = []

    def run() -> None:
        kept = iter(tensors.copy())

        def next_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            tensor = next(kept, None)
            if tensor is None:
                tensor = _random(shape, dtype, device)
                tensors.append(tensor)
            return tensor

        with tensors_from(next_tensor):
            for call in made_by:
                call(problem)

    return run


def median_ms(run: Callable[[], Any]) -> float:
    return triton.testing.do_bench(run, return_mode="median")


def _time(run: Callable[[], Any], kernel: str, problem: str, chosen: Settings) -> float:
    """Infinite for settings that Triton or this device refuses, such as too large tiles."""
    with trying(kernel, problem, chosen):
        try:
            return median_ms(run)
        except TritonError:
            return float("inf")


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Normal numbers; indices are zero, which every launcher takes."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device).to(dtype)


def _write(name: str, best: Table) -> None:
    CONFIGS.joinpath(f"{name}.json").write_text(dumps(best))
    table.cache_clear()


def _module(kernel: str) -> str:
    return kernel.partition(".")[0]
