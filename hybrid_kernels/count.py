"""``hybrid-kernels count``: parameters and operations, the papers' figures beside ours."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module

import torch
from rich.table import Table

from python_ref.counting import CONVENTIONS, Count, count
from python_ref.models import create_model
from python_ref.published import Row, agrees, deviation, rows

PREAMBLE = """\
# Published counts, and ours

Written by `hybrid-kernels count --published --markdown python_ref/published/TABLES.md`; the tests
of the models compare every row with it.

Millions of parameters (M) and billions of operations (G) for one image. A deviation stands where
ours does not round to the printed figure. What counts as an operation, per row: `macs` are
multiply-accumulates of convolutions, linear layers and products of two activations; `modules`
leaves those products out; `fvcore` and `mmcv` are what these tools add for norms, activations and
the like (`python_ref/counting.py`); a number behind a kind is its weight there.""".splitlines()

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


def markdown(line: Callable[[Row], str] | None = None) -> Iterator[str]:
    """All published tables, as lines of Markdown; `line` writes a row."""
    yield from PREAMBLE
    for paper, its_rows in rows().items():
        yield from ("", *_introduction(paper), "")
        yield "| table | model | image | M, paper | M, ours | | G, paper | G, ours | | counts | |"
        yield "|---|---|---|--:|--:|--:|--:|--:|--:|---|---|"
        yield from map(line or markdown_line, its_rows)


def markdown_line(row: Row) -> str:
    """One row of the tables."""
    name = row.name + (f", {row.under} only" if row.under else "")
    size = f"{row.size[0]} x {row.size[1]}"
    cells = [row.table, name, size, *_cells(row), convention_name(row.convention), row.note]
    return f"| {' | '.join(cells)} |"


def convention_name(convention: str | Mapping[str, float]) -> str:
    """A convention as the nearest one that has a name, and what it counts otherwise."""
    if isinstance(convention, str):
        return convention
    kinds = sorted({kind for weights in (convention, *CONVENTIONS.values()) for kind in weights})

    def differences(name: str) -> list[str]:
        pairs = ((kind, convention.get(kind, 0), CONVENTIONS[name].get(kind, 0)) for kind in kinds)
        return [f"{kind} {weight:g}" for kind, weight, named in pairs if weight != named]

    nearest = min(CONVENTIONS, key=lambda name: len(differences(name)))
    return ", ".join([nearest, *differences(nearest)]).replace("_", " ")


def _introduction(paper: str) -> Iterator[str]:
    """The docstring of the module that holds the paper's rows: a heading, and maybe a text."""
    module = import_module(f"python_ref.published.{paper}")
    heading, *text = inspect.getdoc(module).splitlines()
    yield f"## {heading.rstrip('.')}"
    yield from text


def _cells(row: Row) -> list[str]:
    figures = row.count()
    return [
        *_compared(row.paper_params, figures.parameters / 1e6),
        *_compared(row.paper_macs, figures.operations / 1e9),
    ]


def _compared(printed: str | None, ours: float) -> list[str]:
    """Paper, ours with two more digits, and the deviation in percent if ours rounds otherwise."""
    if printed is None:
        return ["", f"{ours:.4g}", ""]
    digits = len(printed.partition(".")[2])
    difference = "" if agrees(printed, ours, None) else f"{deviation(printed, ours):+.2%}"
    return [printed, f"{ours:.{digits + 2}f}", difference]
