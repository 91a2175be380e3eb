"""What every op should reach against its best baseline, and where the results fall short of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.timing import BACKWARD, BOTH, FORWARD


@dataclass(frozen=True)
class Goal:
    """Geometric means over the cases of a group, "" for all; on an instruction set, "" for any."""

    dtype: str
    phase: str
    speedup: float = 0.0
    percent_of_roofline: float = 0.0
    group: str = ""
    isa: str = ""

    def __str__(self) -> str:
        return f"{self.dtype} {self.phase}" + (f", {self.group}" if self.group else "")


# Ops with kernels for CPU, CUDA and Triton, and those with one implementation for GPUs.
TIER_1 = (
    Goal("float32", FORWARD, 3),
    Goal("float32", BOTH, 4),
    Goal("bfloat16", FORWARD, 5),
    Goal("bfloat16", BOTH, 5),
)
TIER_2 = tuple(
    Goal(dtype, phase, 1.5) for dtype in ("float32", "bfloat16") for phase in (FORWARD, BOTH)
)
ATROUS_ATTENTION = (
    Goal("float32", FORWARD, 5, 75, "tiling"),
    Goal("float32", BACKWARD, 4.5, 80, "tiling"),
    Goal("bfloat16", FORWARD, 6, 55, "tiling"),
    Goal("bfloat16", BACKWARD, 5, 0, "tiling"),
    Goal("float32", FORWARD, 0, 65, "tiling", isa="avx2"),
    *(
        Goal(dtype, phase, 2.5, 0, group)
        for group in ("ragged", "head width")
        for dtype in ("float32", "bfloat16")
        for phase in (FORWARD, BACKWARD)
    ),
)


def shortfalls(rows: Sequence[Mapping], goals: Sequence[Goal], isa: str) -> Iterator[str]:
    """A text for every goal that the rows of an op miss, and for the slowest case below 1.0x."""
    rows = [row for row in rows if row["launch"] == "eager"]
    for goal in goals:
        members = [
            row
            for row in rows
            if (row["dtype"], row["phase"]) == (goal.dtype, goal.phase)
            and goal.group in ("", row["group"])
        ]
        if members and goal.isa == isa:
            yield from _missed(goal, members)
    if slower := [row for row in rows if row["speedup"] < 1]:
        worst = min(slower, key=lambda row: row["speedup"])
        yield (
            f"below 1.0x: {len(slower)} of {len(rows)}, least {worst['speedup']:.2f}x "
            f"({worst['case']}, {worst['dtype']} {worst['phase']})"
        )


def _missed(goal: Goal, rows: Sequence[Mapping]) -> Iterator[str]:
    speedup, percent = (_mean(rows, key) for key in ("speedup", "percent_of_roofline"))
    if speedup < goal.speedup:
        possible = 100 * speedup / percent
        yield f"{goal}: {speedup:.2f} of {goal.speedup:g}x (roofline: {possible:.1f}x)"
    if percent < goal.percent_of_roofline:
        yield f"{goal}: {percent:.0f} of {goal.percent_of_roofline:g} % of the roofline"


def _mean(rows: Sequence[Mapping], key: str) -> float:
    return math.exp(sum(math.log(row[key]) for row in rows) / len(rows))
