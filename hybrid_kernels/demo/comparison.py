"""One model against its accelerated self: agreement, times, memory, copies."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from ..agreement import Agreement, compare, gradients
from ..layout import layout_copies
from ..measure import Clock, clock_for
from ..models import accelerated_ops

ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """What one of the two models takes."""

    forward_s: float
    training_s: float  # forward and backward
    peak_bytes: int  # of the training step, beyond what was there before
    copies: int  # of activations to another layout, in the forward


@dataclass(frozen=True)
class Comparison:
    """A row of the table."""

    model: str
    paper: str
    images: Sequence[int]  # shape
    agreements: list[Agreement]
    reference: Cost
    accelerated: Cost
    fused: int  # of the operators that the model calls
    operators: int

    @property
    def ok(self) -> bool:
        return all(agreement.ok for agreement in self.agreements)


def compare_models(
    name: str, paper: str, reference: nn.Module, accelerated: nn.Module, images: Tensor
) -> Comparison:
    """Measure both models, and prove that they agree."""
    costs = measure([reference, accelerated], images)
    agreements = compare(reference, accelerated, images)
    fused = {op for ops in accelerated_ops(accelerated).values() for op in ops}
    used = {op for module in reference.modules() for op in getattr(module, "used_ops", ())}
    return Comparison(name, paper, images.shape, agreements, *costs, len(fused), len(used))


def measure(models: Sequence[nn.Module], images: Tensor) -> list[Cost]:
    """Costs of every model; times are medians of rounds in which all take turns.

    The forward passes come first: training steps move the statistics of BatchNorm, and those of a
    few steps on random weights can make evaluation underflow, which is slow.
    """
    clock = clock_for(images.device.type)
    forwards = [partial(_infer, model.eval(), images) for model in models]
    copies = [len(layout_copies(model, images)) for model in models]
    forward_s = _interleaved(clock, forwards)
    trainings = [partial(_train, model.train(), images) for model in models]
    peaks = [clock.peak_bytes(call) for call in trainings]  # and a warm-up
    training_s = _interleaved(clock, trainings)
    return [Cost(*cost) for cost in zip(forward_s, training_s, peaks, copies, strict=True)]


def _infer(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _train(model: nn.Module, images: Tensor) -> None:
    gradients(model, images)


def _interleaved(clock: Clock, calls: Sequence[Callable[[], None]]) -> list[float]:
    seconds = [[clock.time(call)[1].seconds for call in calls] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*seconds, strict=True)]


NOTE = """\
training: forward and backward, whose peak memory is shown
layout copies: of activations in a forward pass, which only change how they lie in memory
outputs, gradients: largest difference from the reference in float64, as a share of what is
allowed, which is twice that of the reference in float32 and a tiny term"""


def table_of(comparisons: Sequence[Comparison]) -> Table:
    """Every comparison in two lines, the reference above the accelerated model."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=True, title_justify="left")
    table.title = "reference, and below it the accelerated model"
    table.add_column("model\nimages", no_wrap=True)
    for heading in ("forward", "training", "peak\nmemory", "layout\ncopies", "fused\nops"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("outputs", "gradients"):
        table.add_column(heading, justify="right")
    for row in comparisons:
        a, b = row.reference, row.accelerated
        outputs, *others = row.agreements
        worst = max(others, key=lambda agreement: (not agreement.ok, agreement.share))
        table.add_row(
            f"{row.model}, {row.paper}\n{' x '.join(map(str, row.images))}",
            _times(a.forward_s, b.forward_s),
            _times(a.training_s, b.training_s),
            f"{a.peak_bytes / 1e6:.0f} MB\n{b.peak_bytes / 1e6:.0f} MB",
            f"{a.copies}\n{b.copies}",
            f"\n{row.fused} of {row.operators}",
            _verdict(outputs),
            _verdict(worst),
        )
    return table


def _times(slow: float, fast: float) -> str:
    return f"{slow * 1e3:.0f} ms\n{slow / fast:.2f}x  {fast * 1e3:.0f} ms"


def _verdict(agreement: Agreement) -> str:
    text = "[green]agree[/]" if agreement.ok else "[red]disagree[/]"
    return f"{agreement.share:.2f}\n{text}"
