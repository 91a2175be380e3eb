"""Clocks: how long a call takes, how many pages it faults in, how much memory it needs at most."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .output_cache import empty_output_cache

L2_FLUSH_BYTES = 256 << 20  # more than the L2 cache of any GPU

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sample:
    """One timed call."""

    seconds: float
    faults: int  # pages that the kernel had to map and clear during the call

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.seconds + other.seconds, self.faults + other.faults)


class Clock:
    """Wall time and page faults of a call on the CPU."""

    def time(self, call: Callable[[], Result]) -> tuple[Result, Sample]:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        return result, Sample(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Memory that `call` needs at its height beyond what was there before, by resident size."""
        gc.collect()
        empty_output_cache()
        ctypes.CDLL(None).malloc_trim(0)  # else pages of freed tensors would be used unseen
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the high-water mark falls to the present size
        before = _status_bytes("VmRSS")
        result = call()
        peak = _status_bytes("VmHWM") - before
        del result
        return max(peak, 0)


class CudaClock(Clock):
    """Time between two events on the current stream, on a cold L2 cache."""

    def __init__(self) -> None:
        self._flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def time(self, call: Callable[[], Result]) -> tuple[Result, Sample]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda.synchronize()
        begin.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        return result, Sample(begin.elapsed_time(end) / 1e3, 0)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before


def clock_for(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10
