"""The yardstick: the time that this machine needs at least, from limits measured in the same run.

An op that moves `bytes` and does `flops` cannot be faster than either alone at the speed of a plain
copy and of a matrix product in the same dtype. Both limits are contestants like the op itself: they
run in the same rounds, and their medians are taken the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.timing import median_ms
from hybrid_kernels.measure import Clock, Sample

COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}  # well beyond the last cache
GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
COPY, GEMM = "limit: copy", "limit: GEMM"


@dataclass(frozen=True)
class Work:
    """What a call has to do at least."""

    bytes: int  # every input read once, every output written once
    flops: int


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most, in one dtype."""

    bytes_per_s: float  # of a copy, read and written bytes together
    flops_per_s: float  # of a matrix product

    def roofline_ms(self, work: Work) -> float:
        return max(self.memory_ms(work), self.compute_ms(work))

    def bound(self, work: Work) -> str:
        return "memory" if self.memory_ms(work) >= self.compute_ms(work) else "compute"

    def memory_ms(self, work: Work) -> float:
        return work.bytes / self.bytes_per_s * 1e3

    def compute_ms(self, work: Work) -> float:
        return work.flops / self.flops_per_s * 1e3


class CopyLimit:
    """A copy between two buffers that no cache holds."""

    name = COPY

    def __init__(self, device: str) -> None:
        self.bytes = 2 * COPY_BYTES[device]
        self._source = torch.ones(COPY_BYTES[device] // 4, device=device)
        self._target = torch.empty_like(self._source)

    def round(self, clock: Clock) -> dict[str, Sample]:
        return {COPY: clock.time(lambda: self._target.copy_(self._source))[1]}


class GemmLimit:
    """A square matrix product."""

    name = GEMM

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        side = GEMM_SIDE[device]
        self.flops = 2 * side**3
        self._a = torch.ones(side, side, device=device, dtype=dtype)
        self._out = torch.empty_like(self._a)

    def round(self, clock: Clock) -> dict[str, Sample]:
        return {GEMM: clock.time(lambda: torch.mm(self._a, self._a, out=self._out))[1]}


def limit_contestants(device: str, dtype: torch.dtype) -> list[CopyLimit | GemmLimit]:
    return [CopyLimit(device), GemmLimit(device, dtype)]


def limits_from(
    contestants: Sequence[CopyLimit | GemmLimit], samples: dict[str, dict[str, list[Sample]]]
) -> Limits:
    """Limits from the samples that `interleave` took of `limit_contestants`."""
    copy, gemm = contestants
    return Limits(
        bytes_per_s=copy.bytes / (median_ms(samples[COPY][COPY]) / 1e3),
        flops_per_s=gemm.flops / (median_ms(samples[GEMM][GEMM]) / 1e3),
    )
