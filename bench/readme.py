"""The tables of numbers, written from the files under bench/results.

    python -m bench.readme          # after a benchmark

README.md gets one line for every op, and the models; bench/results/TABLES.md gets everything.
"""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from bench import goals, machine, report, stages

README = machine.ROOT / "README.md"
TABLES = report.RESULTS / "TABLES.md"
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"

ABOUT_TABLES = """\
Written by `python -m bench.readme`; how the numbers are made is told in README.md.
"Speed-up at 100 %" is what the roofline leaves above the best baseline: no kernel can gain more,
unless it beats the machine's copy or GEMM rate. "% reading" is the part of our time that is saved
when all images of the batch are the first one, so that the caches serve what is read: where it is
small, instructions or writing limit the op, not reading."""

# What an op's line in README.md shows.
COLUMNS = [
    (dtype, phase)
    for dtype in ("float32", "bfloat16")
    for phase in ("forward", "backward", "forward+backward")
]


def rewritten(text: str) -> str:
    """README's text with the numbers of today's results."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{_section()}\n\n{END}{after}"


def tables() -> str:
    """All tables, one machine after the other."""
    texts = ["# Measurements", ABOUT_TABLES, short_of_goals()]
    for path, content in _results():
        texts += [_origin(path, content["machine"], TABLES.parent), _table(content)]
    return "\n\n".join(texts) + "\n"


def _section() -> str:
    texts = ["## Numbers"]
    found = list(_results())
    for folder in sorted({path.parent for path, _ in found}):
        here = [(path, content) for path, content in found if path.parent == folder]
        ops = [entry for entry in here if "summary" in entry[1]]
        texts += [_about_machine(ops or here), _overview(ops)]
        for path, content in here:
            if path.stem == "models":
                texts += [_origin(path, content["machine"], README.parent), _table(content)]
    if not any(content["machine"]["device"] == "cuda" for _, content in found):
        texts.append("**GPU**: not run on a GPU.")
    return "\n\n".join(texts)


def _results() -> Iterator[tuple[Path, dict]]:
    for folder in sorted(path for path in report.RESULTS.iterdir() if path.is_dir()):
        for path in sorted(folder.glob("*.json")):
            yield path, json.loads(path.read_text())


def short_of_goals() -> str:
    """A line for every file of results that misses a goal."""
    lines = [
        "| op | short of its goals: geometric means, and what 100 % of the roofline would be "
        "| limited by |",
        "|---|---|---|",
    ]
    for path, content in _results():
        if "summary" not in content:
            continue
        bench = importlib.import_module(f"bench.bench_{content['rows'][0]['op']}").BENCH
        isa = path.stem.removesuffix("-partial").removeprefix(bench.op).removeprefix("-")
        if missed := list(goals.shortfalls(content["rows"], bench.goals, isa)):
            lines.append(f"| `{path.stem}` | {'; '.join(missed)} | {bench.limited_by} |")
    return "\n".join(lines)


def _about_machine(entries: list[tuple[Path, dict]]) -> str:
    about = entries[0][1]["machine"]
    return (
        f"{about['device_name']}, {about['threads']} threads, torch {about['versions']['torch']}. "
        "Speed-up over the best baseline and, in brackets, percent of the roofline: geometric "
        "means over all cases. "
        f"[All cases, with the commands]({TABLES.relative_to(machine.ROOT)}), and first which ops "
        "are short of their goals, by how much, and what limits them. `-partial`: without "
        "torch.compile among the baselines, which in bfloat16 is often the best one."
    )


def _overview(entries: list[tuple[Path, dict]]) -> str:
    """A line for every file of results of an op."""
    titles = [f"{phase}, {dtype}" for dtype, phase in COLUMNS]
    lines = [
        f"| op | cases | {' | '.join(titles)} | slowest |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for path, content in entries:
        rows = [row for row in content["rows"] if row["launch"] == "eager"]
        cells = [
            _mean_cell([r for r in rows if (r["dtype"], r["phase"]) == column])
            for column in COLUMNS
        ]
        worst = min(rows, key=lambda row: row["speedup"])
        slowest = f"{worst['speedup']:.2f}x: {worst['case']}, {worst['dtype']}, {worst['phase']}"
        cases = len({row["case"] for row in rows})
        lines.append(f"| `{path.stem}` | {cases} | {' | '.join(cells)} | {slowest} |")
    return "\n".join(lines)


def _mean_cell(rows: list[dict]) -> str:
    if not rows:
        return ""
    speedup, percent = (
        math.exp(sum(math.log(row[key]) for row in rows) / len(rows))
        for key in ("speedup", "percent_of_roofline")
    )
    return f"{speedup:.2f}x ({percent:.0f})"


def _table(content: dict) -> str:
    if "stages" in content:
        return _stages_table(content["stages"])
    return (
        _ops_table(content["summary"]) if "summary" in content else _models_table(content["rows"])
    )


def _origin(path: Path, about: dict, base: Path) -> str:
    environment = "".join(f"{k}={v} " for k, v in about.get("environment", {}).items())
    link = f"[`{path.name}`]({path.relative_to(base)})"
    return (
        f"**{path.stem}** on {about['device_name']}, {about['threads']} threads, "
        f"{about['cpu_isa']}, torch {about['versions']['torch']}: "
        f"{link}, made by `{environment}{about['command']}`"
    )


def _ops_table(summary: list[dict]) -> str:
    lines = [
        "| cases | dtype | phase | speed-up over the best baseline | % of roofline "
        "| speed-up at 100 % | % reading | worst case |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in summary:
        # Files from before this was recorded have none.
        reading = line.get("reading_percent")
        launch = "" if line["launch"] == "eager" else f", {line['launch']}"
        lines.append(
            f"| {line['group']} ({line['cases']}) | {line['dtype']} | {line['phase']}{launch} "
            f"| {line['speedup']:.2f}x | {line['percent_of_roofline']:.0f} "
            f"| {100 * line['speedup'] / line['percent_of_roofline']:.1f}x "
            f"| {'' if reading is None else f'{reading:.0f}'} "
            f"| {line['worst_speedup']:.2f}x, {line['worst_case']} |"
        )
    return "\n".join(lines)


def _stages_table(rows: list[dict]) -> str:
    """Part of the whole's time that leaving each stage out saves, with its quartiles."""
    titles = [stage for stage in rows[0]["ratios"] if stage != stages.CONTROL]
    lines = [
        f"| case | dtype | phase | whole | {' | '.join(titles)} |",
        "|---" * (4 + len(titles)) + "|",
    ]
    for row in rows:
        saved = stages.figures(row["ratios"])
        lines.append(
            f"| {row['case']} | {row['dtype']} | {row['phase']} | {row['whole_ms']:.2f} ms "
            f"| {' | '.join(saved[title] for title in titles)} |"
        )
    return "\n".join(lines)


def _models_table(rows: list[dict]) -> str:
    """Errors are shares of what the accuracy rule allows, of outputs and of gradients; the last
    column is the part of the accelerated time in the library's matrix products and convolutions."""
    lines = [
        "| case | reference | accelerated | faster | peak memory | accelerated "
        "| error / allowed | layout copies | accelerated | % library products |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, peak = row["ms"], row["peak_mb"]
        # Files from before these were recorded have none.
        errors = ", ".join(f"{share:.2f}" for share in row.get("error_of_allowed", {}).values())
        copies = row.get("layout_copies", {"reference": "", "accelerated": ""})
        products = f"{row['library_percent']:.0f}" if "library_percent" in row else ""
        lines.append(
            f"| {row['case']} | {ms['reference']:.0f} ms | {ms['accelerated']:.0f} ms "
            f"| {row['speedup']:.2f}x over {row['best_baseline']} "
            f"| {peak['reference']:.0f} MB | {peak['accelerated']:.0f} MB "
            f"| {errors} | {copies['reference']} | {copies['accelerated']} | {products} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
    TABLES.write_text(tables())
