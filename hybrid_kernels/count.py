"""``hybrid-kernels count``: parameters and operations, the papers' figures beside ours."""

from collections.abc import Iterable, Iterator

import torch
from rich.table import Table

from python_ref.counting import Count, count
from python_ref.models import create_model
from python_ref.published import Row, deviation, rows

TITLES = {"macs": "MACs", "modules": "MACs of modules", "fvcore": "fvcore", "mmcv": "mmcv"}


def count_model(name: str, size: tuple[int, int], options: dict, training: bool = False) -> Count:
    """Count a model of ``list_models()`` for one image, without data."""
    with torch.device("meta"):
        model = create_model(name, **options).train(training)
        return count(model, torch.empty(1, 3, *size))


def published_rows(name: str, size: tuple[int, int], options: dict) -> list[Row]:
    """The lines of the papers' tables about this very model at this size, without a dense head."""
    return [
        row
        for papers_rows in rows().values()
        for row in papers_rows
        if (row.model, row.size, dict(row.options)) == (name, size, options) and not row.head
    ]


def module_table(counted: Count, convention: str | dict, depth: int) -> Table:
    """Operations of every module, in the order in which they run, with the sum."""
    title = TITLES[convention] if isinstance(convention, str) else "as the paper counts"
    table = Table(title_justify="left")
    table.add_column("module")
    for heading in ("parameters", title, "share"):
        table.add_column(heading, justify="right")
    total = counted.total(convention)
    for name, operations in counted.by_module(convention, depth).items():
        parameters = f"{counted.parameters_of[name]:,}"
        table.add_row(name, parameters, f"{operations:,.0f}", f"{operations / total:.1%}")
    table.add_section()
    table.add_row("all", f"{counted.parameters:,}", f"{total:,.0f}", "")
    return table


def published_table(found: Iterable[Row]) -> Table:
    """The papers' figures beside ours."""
    table = Table(title="published", title_justify="left")
    for heading in ("table", "model", "parameters M", "ours", "deviation"):
        table.add_column(heading)
    for heading in ("operations G", "ours", "deviation"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(row.table, row.name, *_cells(row))
    return table


def markdown() -> Iterator[str]:
    """All published tables, as lines of Markdown."""
    yield "# Published counts, and ours"
    yield ""
    yield "Written by `hybrid-kernels count --published --markdown python_ref/published/TABLES.md`."
    yield "A deviation is left out where ours rounds to the printed figure."
    for paper, its_rows in rows().items():
        yield from ("", f"## {paper}", "")
        yield "| table | model | image | parameters M: paper | ours | | G: paper | ours | | |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        yield from map(markdown_line, its_rows)


def markdown_line(row: Row) -> str:
    """One row of the tables."""
    name = row.name + (f", {row.under} only" if row.under else "")
    size = f"{row.size[0]} x {row.size[1]}"
    return f"| {' | '.join([row.table, name, size, *_cells(row), row.note])} |"


def _cells(row: Row) -> list[str]:
    figures = row.count()
    return [
        *_compared(row.paper_params, figures.parameters / 1e6),
        *_compared(row.paper_macs, figures.operations / 1e9),
    ]


def _compared(printed: str | None, ours: float) -> list[str]:
    """Paper, ours with two more digits, and the deviation in percent."""
    if printed is None:
        return ["", f"{ours:.4g}", ""]
    digits = len(printed.partition(".")[2])
    rounded = f"{ours:.{digits}f}"
    difference = "" if rounded == printed else f"{deviation(printed, ours):+.1%}"
    return [printed, f"{ours:.{digits + 2}f}", difference]
