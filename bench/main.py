"""Command line of every benchmark of an op: measure, print, write JSON, CSV and plots."""

from dataclasses import replace

import click
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from bench import report
from bench.op_bench import DTYPES, OpBench, Options, Row, measure_case, select_cases
from hybrid_kernels import _native


def run(bench: OpBench) -> None:
    """Entry point of bench_<op>.py."""

    @click.command(help=f"Measure {bench.op} against its baselines and the roofline.")
    @common_options
    @click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)))
    @click.option("--only", default="", help="Only cases whose name contains this.")
    @click.option("--no-compile", is_flag=True, help="Leave out torch.compile, which takes long.")
    @click.option("--budget", default=4.0, help="Seconds of timed rounds, per case and dtype.")
    @click.option("--graphs", is_flag=True, help="On a GPU: also launched from CUDA graphs.")
    @click.option("--label", default="", help="Appended to the name of the result files.")
    def command(device, quick, isa, dtypes, only, no_compile, budget, graphs, label) -> None:
        start(device, isa)
        options = Options(
            device=device,
            quick=quick,
            compile=not (no_compile or quick),
            graphs=graphs and device == "cuda",
            budget_s=1.0 if quick else budget,
            only=only,
        )
        if dtypes:
            options = replace(options, dtypes=dtypes)
        rows = measure(bench, options)
        name = "-".join(filter(None, (bench.op, isa, label)))
        if quick or only or dtypes or no_compile:
            name += "-partial"  # never in the place of a full run
        report.write(name, rows, device)

    command()


def common_options(command):
    """Options that every benchmark has."""
    for option in (
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default=default_device()),
        click.option("--quick", is_flag=True, help="A minute instead of several, no compile."),
        click.option("--isa", default="", help="Lower the instruction set of the CPU kernels."),
    ):
        command = option(command)
    return command


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def start(device: str, isa: str) -> None:
    """Check and apply what the command line asks for."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: torch sees no CUDA device; use --device cpu")
    if isa:
        try:
            _native.set_cpu_isa(isa)
        except ValueError as problem:
            raise click.UsageError(f"--isa: {problem}") from problem


def measure(bench: OpBench, options: Options) -> list[Row]:
    """Every selected case in every dtype, with a progress bar."""
    cases = select_cases(bench, options)
    if not cases:
        names = ", ".join(case.name for case in bench.cases)
        raise click.UsageError(f"no case to measure; {bench.op} has {names}")
    rows: list[Row] = []
    with progress_bar() as progress:
        task = progress.add_task(bench.op, total=len(cases) * len(options.dtypes))
        for case in cases:
            for dtype in options.dtypes:
                progress.update(task, description=f"{bench.op}: {case.name}, {dtype}")
                new = measure_case(bench, case, dtype, options)
                progress.console.print(*map(_line, new), sep="\n")
                rows += new
                progress.advance(task)
    return rows


def progress_bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=report.terminal(stderr=True),
        transient=True,
    )


def _line(row: Row) -> str:
    times = "  ".join(f"{name} {ms:.2f}" for name, ms in row.ms.items())
    launch = " graph" if row.launch == "graph" else ""
    return (
        f"{row.case:16} {row.dtype:8} {row.phase + launch:16} {row.speedup:5.2f}x "
        f"{row.percent_of_roofline:4.0f} %   ms: {times}"
    )
