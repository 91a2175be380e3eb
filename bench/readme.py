"""The tables of numbers in README.md, written from the files under bench/results.

python -m bench.readme          # after a benchmark
"""

import json
from pathlib import Path

from bench import machine, report, stages

README = machine.ROOT / "README.md"
BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"


def section() -> str:
    """All tables, one machine after the other."""
    folders = sorted(path for path in report.RESULTS.iterdir() if path.is_dir())
    return "\n\n".join(["## Numbers", *(text for folder in folders for text in _folder(folder))])


def rewritten(text: str) -> str:
    """README's text with the tables of today's results."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section()}\n\n{END}{after}"


def _folder(folder: Path) -> list[str]:
    texts = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        texts += [_origin(path, content["machine"]), _table(content)]
    return texts


def _table(content: dict) -> str:
    if "stages" in content:
        return _stages_table(content["stages"])
    return (
        _ops_table(content["summary"]) if "summary" in content else _models_table(content["rows"])
    )


def _origin(path: Path, about: dict) -> str:
    environment = "".join(f"{k}={v} " for k, v in about.get("environment", {}).items())
    link = f"[`{path.name}`]({path.relative_to(machine.ROOT)})"
    return (
        f"**{path.stem}** on {about['device_name']}, {about['threads']} threads, "
        f"{about['cpu_isa']}, torch {about['versions']['torch']}: "
        f"{link}, made by `{environment}{about['command']}`"
    )


def _ops_table(summary: list[dict]) -> str:
    lines = [
        "| cases | dtype | phase | speed-up over the best baseline | % of roofline | worst case |",
        "|---|---|---|---|---|---|",
    ]
    for line in summary:
        launch = "" if line["launch"] == "eager" else f", {line['launch']}"
        lines.append(
            f"| {line['group']} ({line['cases']}) | {line['dtype']} | {line['phase']}{launch} "
            f"| {line['speedup']:.2f}x | {line['percent_of_roofline']:.0f} "
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
    """Errors are shares of what the accuracy rule allows, of outputs and of gradients."""
    lines = [
        "| case | reference | accelerated | faster | peak memory | accelerated "
        "| error / allowed | layout copies | accelerated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, peak = row["ms"], row["peak_mb"]
        # Files from before these were recorded have none.
        errors = ", ".join(f"{share:.2f}" for share in row.get("error_of_allowed", {}).values())
        copies = row.get("layout_copies", {"reference": "", "accelerated": ""})
        lines.append(
            f"| {row['case']} | {ms['reference']:.0f} ms | {ms['accelerated']:.0f} ms "
            f"| {row['speedup']:.2f}x over {row['best_baseline']} "
            f"| {peak['reference']:.0f} MB | {peak['accelerated']:.0f} MB "
            f"| {errors} | {copies['reference']} | {copies['accelerated']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
