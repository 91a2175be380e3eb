"""Results as JSON, CSV, a table of geometric means, and plots."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.op_bench import Row

RESULTS = machine.ROOT / "bench" / "results"


def results_folder(device: str) -> Path:
    """Folder of the results of this machine; made if it is not there."""
    folder = RESULTS / machine.device_slug(device)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(name: str, rows: Sequence[Row], device: str) -> None:
    """Write `<name>.json`, `<name>.csv` and the plots, and print the geometric means."""
    folder = results_folder(device)
    summary = geometric_means(rows)
    write_json(folder / f"{name}.json", device, {"summary": summary, "rows": rows_as_dicts(rows)})
    write_csv(folder / f"{name}.csv", [flatten(asdict(row)) for row in rows])
    console = terminal()
    console.print(summary_table(summary))
    try:
        from bench import plots
    except ImportError as problem:
        console.print(f"no plots: {problem}; pip install matplotlib")
    else:
        plots.plot_rows(rows, folder / "plots", name)
    console.print(f"written: {folder.relative_to(machine.ROOT)}/{name}.json, .csv, plots/")


def write_json(path: Path, device: str, content: dict[str, object]) -> None:
    """`content` under a description of the machine."""
    text = json.dumps({"machine": machine.describe(device), **content}, indent=1)
    path.write_text(text + "\n")


def rows_as_dicts(rows: Iterable[object]) -> list[dict[str, object]]:
    return [round_floats(asdict(row)) for row in rows]


def round_floats(value):
    """Four significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [round_floats(item) for item in value]
    return value


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """One line per row; columns in order of first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def flatten(row: dict[str, object]) -> dict[str, object]:
    """Nested {"ms": {"fused": 1}} -> {"ms fused": 1}."""
    flat: dict[str, object] = {}
    for key, value in round_floats(row).items():
        if isinstance(value, dict):
            flat |= {f"{key} {inner}": item for inner, item in value.items()}
        elif isinstance(value, list):
            flat |= {f"{key} {index}": item for index, item in enumerate(value)}
        else:
            flat[key] = value
    return flat


def geometric_means(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Speed-up and percent of roofline by group, dtype, phase and launch; also the worst case."""
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group, row.dtype, row.phase, row.launch].append(row)
    summary = []
    for (group, dtype, phase, launch), members in groups.items():
        worst = min(members, key=lambda row: row.speedup)
        mean = {
            "group": group,
            "dtype": dtype,
            "phase": phase,
            "launch": launch,
            "cases": len(members),
            "speedup": geometric_mean(row.speedup for row in members),
            "percent_of_roofline": geometric_mean(row.percent_of_roofline for row in members),
            "reading_percent": mean_of_known(row.reading_percent for row in members),
            "worst_speedup": worst.speedup,
            "worst_case": worst.case,
        }
        summary.append(round_floats(mean))
    return summary


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summary_table(summary: Sequence[dict[str, object]]) -> Table:
    table = Table(title="geometric means, fused against the best baseline of each case")
    for heading in ("group", "dtype", "phase", "launch"):
        table.add_column(heading, no_wrap=True)
    for heading in ("cases", "speed-up", "% of roofline", "worst", "on"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in summary:
        table.add_row(
            *(str(line[key]) for key in ("group", "dtype", "phase", "launch", "cases")),
            f"{line['speedup']:.2f}x",
            f"{line['percent_of_roofline']:.0f}",
            f"{line['worst_speedup']:.2f}x",
            str(line["worst_case"]),
        )
    return table


def terminal(stderr: bool = False) -> Console:
    """A console that never folds the tables of results, in a log file either."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=160)
