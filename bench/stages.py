"""What limits a CPU kernel: each stage left out in turn, and what the whole then takes.

    python -m bench.stages atrous_attention

Builds variants of the op's CPU kernels that lack one stage (csrc/common/stages.h), for the
instruction set in use. Each runs in a process of its own, in turns with the whole kernel. What a
stage costs is the difference; stages overlap, so that costs need not add up to the whole. "memory"
is everything that caches cannot serve: reads, writes, and page faults of fresh results.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch

from bench import machine, report
from bench.main import progress_bar, start
from bench.op_bench import DTYPES, OpBench, make_inputs
from bench.timing import BACKWARD, FORWARD, Call, interleave, median_ms
from hybrid_kernels import _native
from hybrid_kernels.measure import Clock, Sample, clock_for

BUILD_DIR = machine.ROOT / "build" / "native"
WHOLE = "none"  # what the ordinary library leaves out
STAGES = ("products", "exponentials", "packing", "prefetch", "memory")
GROUP = "tiling"  # the cases to measure


@dataclass(frozen=True)
class StageRow:
    """One line of results: a case, dtype and phase, and the cost of every stage."""

    case: str
    dtype: str
    phase: str
    rounds: int
    whole_ms: float
    cost_ms: dict[str, float]  # what leaving the stage out saves


def build_variant(op: str, stage: str, isa: str) -> Path:
    """The ordinary library with the op's CPU kernels compiled anew, without the stage."""
    kernels = [path.name for path in BUILD_DIR.glob(f"{op}/{op}_cpu*.{isa}.o")]
    if not kernels:
        raise click.UsageError(
            f"{op} has no CPU kernels for {isa} in {BUILD_DIR}: run `make build`"
        )
    ninja = [sys.executable, "-m", "ninja", "-C", str(BUILD_DIR), "--quiet"]
    listing = subprocess.run(
        [*ninja, "-t", "compdb", "cpu", "link"], capture_output=True, check=True
    )
    folder = BUILD_DIR.parent / "stages" / op / f"{stage}.{isa}"
    folder.mkdir(parents=True, exist_ok=True)

    def moved(argument: str) -> str:
        name = argument.removeprefix(f"{op}/")
        return str(folder / name) if name.removesuffix(".d") in (*kernels, "_C.so") else argument

    for entry in json.loads(listing.stdout):
        if Path(entry["output"]).name in (*kernels, "_C.so"):
            command = [moved(argument) for argument in shlex.split(entry["command"])]
            if entry["output"].endswith(".o"):
                command.append(f"-DHYBRID_LEFT_OUT={stage}")
            subprocess.run(command, cwd=BUILD_DIR, check=True)
    return folder / "_C.so"


class Remote:
    """A library at work in another process: a contestant of `bench.timing`."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self._connection = name, connection

    def prepare(self, case: str, dtype: str) -> None:
        self._ask(case, dtype)

    def round(self, clock: Clock) -> dict[str, Sample]:
        return self._ask()

    def _ask(self, *request: str) -> dict[str, Sample] | None:
        self._connection.send(request)
        return self._connection.recv()


def serve(connection: Connection, op: str, isa: str) -> None:
    """The other side of `Remote`, until the connection closes."""
    _native.set_cpu_isa(isa)
    clock, call = clock_for("cpu"), None
    with contextlib.suppress(EOFError):
        while True:
            if request := connection.recv():
                call = make_call(op, *request)
                connection.send(None)
            else:
                connection.send(call.round(clock))


def make_call(op: str, case_name: str, dtype: str) -> Call:
    bench = declaration(op)
    case = next(case for case in bench.cases if case.name == case_name)
    args = make_inputs(case, DTYPES[dtype], "cpu")
    return Call(op, bench.fused, args, torch.randn_like(bench.fused(*args)))


def declaration(op: str) -> OpBench:
    return importlib.import_module(f"bench.bench_{op}").BENCH


@contextlib.contextmanager
def remotes(op: str, isa: str, libraries: dict[str, Path]) -> Iterator[list[Remote]]:
    """A process for each library."""
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        started = []
        for name, library in libraries.items():
            os.environ["HYBRID_KERNELS_LIBRARY"] = str(library)  # inherited by the process
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, op, isa), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            started.append(Remote(name, ours))
        yield started


def measure(contestants: list[Remote], case: str, dtype: str, budget_s: float) -> list[StageRow]:
    for contestant in contestants:
        contestant.prepare(case, dtype)
    samples = interleave(contestants, clock_for("cpu"), budget_s, (5, 40))
    rows = []
    for phase in (FORWARD, BACKWARD):
        ms = {name: median_ms(phases[phase]) for name, phases in samples.items()}
        whole = ms.pop(WHOLE)
        costs = {stage: whole - without for stage, without in ms.items()}
        rows.append(StageRow(case, dtype, phase, len(samples[WHOLE][phase]), whole, costs))
    return rows


@click.command(help="Leave the stages of OP's CPU kernels out one at a time.")
@click.argument("op", type=click.Choice(["atrous_attention"]))
@click.option("--isa", default="", help="Lower the instruction set of the CPU kernels.")
@click.option("--dtype", "dtypes", multiple=True, default=("float32", "bfloat16"))
@click.option("--budget", default=4.0, help="Seconds of timed rounds, per case and dtype.")
def main(op: str, isa: str, dtypes: tuple[str, ...], budget: float) -> None:
    start("cpu", isa)
    name = "-".join(filter(None, (op, isa, "stages")))
    isa = _native.cpu_isa()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        variants = pool.map(lambda stage: build_variant(op, stage, isa), STAGES)
        libraries = {WHOLE: _native.library_path(), **dict(zip(STAGES, variants, strict=True))}
    cases = [case.name for case in declaration(op).cases if case.group == GROUP]
    rows: list[StageRow] = []
    with remotes(op, isa, libraries) as contestants, progress_bar() as progress:
        task = progress.add_task(op, total=len(cases) * len(dtypes))
        for case in cases:
            for dtype in dtypes:
                progress.update(task, description=f"{op}: {case}, {dtype}")
                rows += measure(contestants, case, dtype, budget)
                progress.advance(task)
    path = report.results_folder("cpu") / f"{name}.json"
    report.write_json(path, "cpu", {"stages": report.rows_as_dicts(rows)})
    for row in rows:
        costs = "  ".join(
            f"{stage} {100 * ms / row.whole_ms:.0f} %" for stage, ms in row.cost_ms.items()
        )
        print(f"{row.case:14} {row.dtype:8} {row.phase:8} {row.whole_ms:6.2f} ms: {costs}")
    print(f"written: {path.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
