"""Time calls against each other: interleaved rounds and their medians.

Every contestant runs once in every round, in an order that is drawn anew, so that whatever else
the machine does, and whatever the one before left in the caches, falls on all of them alike.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hybrid_kernels.measure import Clock, Sample

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
PHASES = (FORWARD, BACKWARD, BOTH)


class Contestant(Protocol):
    """Something that can be timed, phase by phase."""

    name: str

    def round(self, clock: Clock) -> dict[str, Sample]:
        """Run every phase once."""


Output = Tensor | Sequence[Tensor]


class Call:
    """A function: inference forward and, if it is differentiable, training forward, backward.

    The function returns one tensor or several; `grad_out` is as many.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Output],
        inputs: Sequence[object],
        grad_out: Output,
    ) -> None:
        self.name, self.grad_out = name, grad_out
        self._function, self._inputs = function, tuple(inputs)
        tensors = [x for x in pytree.tree_leaves(self._inputs) if isinstance(x, Tensor)]
        self._leaves = [x for x in tensors if x.requires_grad]

    def infer(self) -> Output:
        with torch.no_grad():
            return self._function(*self._inputs)

    def forward(self) -> Output:
        return self._function(*self._inputs)

    def backward(self, out: Output) -> tuple[Tensor, ...]:
        if not is_differentiable(out):
            return ()
        return torch.autograd.grad(out, self._leaves, self.grad_out)

    def train(self) -> tuple[Tensor, ...]:
        return self.backward(self.forward())

    def round(self, clock: Clock) -> dict[str, Sample]:
        _, infer = clock.time(self.infer)
        out, forward = clock.time(self.forward)
        if not is_differentiable(out):
            return {FORWARD: infer}
        _, backward = clock.time(lambda: self.backward(out))
        return {FORWARD: infer, BACKWARD: backward, BOTH: forward + backward}

    def peaks(self, clock: Clock) -> dict[str, int]:
        """Peak extra bytes of every phase. What the backward keeps counts for forward+backward."""
        peaks = {FORWARD: clock.peak_bytes(self.infer), BOTH: clock.peak_bytes(self.train)}
        out = self.forward()
        return peaks | {BACKWARD: clock.peak_bytes(lambda: self.backward(out))}


def is_differentiable(out: Output) -> bool:
    return any(x.requires_grad for x in pytree.tree_leaves(out))


class Graphed:
    """A `Call` captured in CUDA graphs: the same kernels without the cost of launching them."""

    def __init__(self, call: Call) -> None:
        self.name = call.name
        self._graphs = {FORWARD: _capture(call.infer), BOTH: _capture(call.train)}

    def round(self, clock: Clock) -> dict[str, Sample]:
        return {phase: clock.time(graph.replay)[1] for phase, graph in self._graphs.items()}


def interleave(
    contestants: Sequence[Contestant], clock: Clock, budget_s: float, rounds: tuple[int, int]
) -> dict[str, dict[str, list[Sample]]]:
    """Samples[name][phase] of rounds that take about `budget_s` in all.

    Args:
        contestants: Each runs once per round, after one round that is not counted.
        clock: Of the device.
        budget_s: Seconds after which no further round begins.
        rounds: The fewest and the most rounds, whatever the budget.
    """
    samples: dict[str, dict[str, list[Sample]]] = {c.name: {} for c in contestants}
    for contestant in contestants:
        contestant.round(clock)
    begin = time.perf_counter()
    for number in range(rounds[1]):
        if number >= rounds[0] and time.perf_counter() - begin > budget_s:
            break
        for contestant in random.Random(number).sample(contestants, len(contestants)):
            for phase, sample in contestant.round(clock).items():
                samples[contestant.name].setdefault(phase, []).append(sample)
    return samples


def median_ms(samples: Sequence[Sample]) -> float:
    return statistics.median(s.seconds for s in samples) * 1e3


def quartiles_ms(samples: Sequence[Sample]) -> tuple[float, float]:
    """First and third quartile: how far the rounds lie apart."""
    low, _, high = statistics.quantiles((s.seconds * 1e3 for s in samples), n=4)
    return low, high


def median_faults(samples: Sequence[Sample]) -> int:
    return int(statistics.median(s.faults for s in samples))


def _capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warm-up outside the capture: allocations, lazy loading
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
