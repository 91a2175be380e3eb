"""Plots of results: speed-up over the best baseline, and percent of the roofline."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.op_bench import Row

# One hue per dtype: light for the forward, darker for the backward, darkest for both.
COLOURS = {
    ("float32", "forward"): "#9ecae1",
    ("float32", "backward"): "#4292c6",
    ("float32", "forward+backward"): "#08519c",
    ("bfloat16", "forward"): "#fdd0a2",
    ("bfloat16", "backward"): "#fd8d3c",
    ("bfloat16", "forward+backward"): "#a63603",
    ("float16", "forward"): "#c7e9c0",
    ("float16", "backward"): "#74c476",
    ("float16", "forward+backward"): "#006d2c",
}
LOSS = "#cb181d"


def plot_rows(rows: Sequence[Row], folder: Path, name: str) -> None:
    """`<name>-speedup.png` and `<name>-roofline.png`, one more pair for CUDA-graph launches."""
    folder.mkdir(parents=True, exist_ok=True)
    for launch in dict.fromkeys(row.launch for row in rows):
        chosen = [row for row in rows if row.launch == launch]
        suffix = "" if launch == "eager" else f"-{launch}"
        _plot(chosen, "speedup", folder / f"{name}{suffix}-speedup.png")
        _plot(chosen, "percent_of_roofline", folder / f"{name}{suffix}-roofline.png")


def _plot(rows: Sequence[Row], quantity: str, path: Path) -> None:
    cases = list(dict.fromkeys(row.case for row in rows))
    series = list(dict.fromkeys((row.dtype, row.phase) for row in rows))
    values = {(row.case, row.dtype, row.phase): getattr(row, quantity) for row in rows}
    figure = Figure(figsize=(max(6.5, 1.1 * len(cases) + 2.5), 4.6), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(series)
    for index, (dtype, phase) in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * width
        for position, case in enumerate(cases):
            if (value := values.get((case, dtype, phase))) is None:
                continue
            lost = quantity == "speedup" and value < 1
            colour = COLOURS[dtype, phase]
            axes.bar(
                position + offset,
                value,
                width * 0.94,
                color=colour,
                edgecolor=LOSS if lost else colour,
                linewidth=1.5 if lost else 0,
                label=f"{dtype} {phase}" if position == 0 else None,
            )
            axes.annotate(
                f"{value:.0f}" if value >= 10 else f"{value:.1f}",
                (position + offset, value),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=6.5,
                color=LOSS if lost else "#404040",
            )
    _finish(axes, rows[0].op, quantity, cases)
    figure.legend(fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _finish(axes: Axes, op: str, quantity: str, cases: Sequence[str]) -> None:
    if quantity == "speedup":
        axes.axhline(1, color="#404040", linewidth=0.8)
        axes.set_ylabel("times faster than the best baseline")
    else:
        axes.axhline(100, color="#404040", linewidth=0.8)
        axes.set_ylabel("percent of the roofline")
    axes.set_title(op, loc="left", fontweight="bold")
    slanted = {"rotation": 20, "ha": "right"} if len(cases) > 4 else {}
    axes.set_xticks(range(len(cases)), cases, **slanted)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
