"""What limits a CPU kernel: each stage left out in turn, and how much sooner the whole then ends.

    python -m bench.stages atrous_attention

Builds variants of the op's CPU kernels that lack one stage (csrc/common/stages.h), for the
instruction set in use. A library cannot be exchanged within a process, so every variant has one of
its own, which lives as long as the measurement; a second one with the whole kernel is the control.
They take their turns: one call each, many rounds, and the time of each against that of the whole
kernel in the same round. What a stage costs is the median of what leaving it out saves. It is
"unclear" if the quartiles lie further apart than that, or if the control differs by as much.

Stages overlap, so costs need not add up to the whole. "memory" is what the caches cannot serve.
Page faults are no stage: the processes keep freed memory (WORKER_SETTINGS).
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch
from torch.utils import _pytree as pytree

from bench import machine, report
from bench.main import progress_bar, start
from bench.op_bench import DTYPES, OpBench, make_inputs
from bench.timing import BACKWARD, FORWARD, Call, interleave, median_ms
from hybrid_kernels import _native
from hybrid_kernels.measure import Clock, Sample, clock_for

BUILD_DIR = machine.ROOT / "build" / "native"
WHOLE, CONTROL = "none", "control"  # both are the ordinary library
STAGES = ("products", "exponentials", "packing", "prefetch", "memory")
GROUP = "tiling"  # the cases to measure
ROUNDS = (15, 200)  # the fewest and the most, whatever the budget
SUFFIXES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}
WORKER_SETTINGS = {
    # glibc keeps what is freed: else fresh results cost page faults, more than any stage and
    # different in every process.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "99999999999",
    # Threads without work sleep at once, instead of spinning into the next process's turn.
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True)
class StageRow:
    """One line of results: a case, dtype and phase, and the time without every stage.

    `ratios` are the quartiles, over the rounds, of the time without a stage divided by that of the
    whole kernel.
    """

    case: str
    dtype: str
    phase: str
    rounds: int
    whole_ms: float
    ratios: dict[str, tuple[float, float, float]]


def figures(ratios: Mapping[str, tuple[float, float, float]]) -> dict[str, str]:
    """Percent of the whole that leaving a stage out saves, as text; "unclear" within the noise."""
    drift = abs(1 - ratios[CONTROL][1])
    texts = {}
    for stage, (low, median, high) in ratios.items():
        if stage == CONTROL:
            continue
        saved, least, most = (100 * (1 - ratio) for ratio in (median, high, low))
        is_clear = abs(1 - median) > max(high - low, drift)
        texts[stage] = f"{saved:.0f} % ({least:.0f} to {most:.0f})" if is_clear else "unclear"
    return texts


def kernels_of(op: str, isa: str, dtypes: Sequence[str]) -> list[str]:
    """Objects of the op's CPU kernels, without those of other dtypes where each has its file."""
    others = tuple(f"_{s}.{isa}.o" for dtype, s in SUFFIXES.items() if dtype not in dtypes)
    paths = BUILD_DIR.glob(f"{op}/{op}_cpu*.{isa}.o")
    return [path.name for path in paths if not path.name.endswith(others)]


def build_variant(op: str, stage: str, isa: str, dtypes: Sequence[str]) -> Path:
    """The ordinary library with the op's CPU kernels compiled anew, without the stage."""
    kernels = kernels_of(op, isa, dtypes)
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
    """A library at work in a process of its own: a contestant of `bench.timing`."""

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
                connection.send(time_once(call, clock))


def time_once(call: Call, clock: Clock) -> dict[str, Sample]:
    out, forward = clock.time(call.forward)
    _, backward = clock.time(lambda: call.backward(out))
    return {FORWARD: forward, BACKWARD: backward}


def make_call(op: str, case_name: str, dtype: str) -> Call:
    bench = declaration(op)
    case = next(case for case in bench.cases if case.name == case_name)
    args = make_inputs(case, DTYPES[dtype], "cpu")
    return Call(op, bench.fused, args, pytree.tree_map(torch.randn_like, bench.fused(*args)))


def declaration(op: str) -> OpBench:
    return importlib.import_module(f"bench.bench_{op}").BENCH


@contextlib.contextmanager
def remotes(op: str, isa: str, libraries: dict[str, Path]) -> Iterator[list[Remote]]:
    """A process for each library."""
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        started = []
        for name, library in libraries.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, op, isa), daemon=True)
            with environment(WORKER_SETTINGS | {"HYBRID_KERNELS_LIBRARY": str(library)}):
                process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            started.append(Remote(name, ours))
        yield started


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """What processes that start inside the ``with`` block inherit."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(contestants: list[Remote], case: str, dtype: str, budget_s: float) -> list[StageRow]:
    for contestant in contestants:
        contestant.prepare(case, dtype)
    samples = interleave(contestants, clock_for("cpu"), budget_s, ROUNDS)
    rows = []
    for phase in (FORWARD, BACKWARD):
        whole = samples[WHOLE][phase]
        ratios = {
            name: quartiles_of_ratios(phases[phase], whole)
            for name, phases in samples.items()
            if name != WHOLE
        }
        rows.append(StageRow(case, dtype, phase, len(whole), median_ms(whole), ratios))
    return rows


def quartiles_of_ratios(
    samples: Sequence[Sample], whole: Sequence[Sample]
) -> tuple[float, float, float]:
    """Of the times of the same rounds: what the machine did in between falls on both."""
    ratios = [one.seconds / other.seconds for one, other in zip(samples, whole, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return low, median, high


@click.command(help="Leave the stages of OP's CPU kernels out one at a time.")
@click.argument("op", type=click.Choice(["atrous_attention"]))
@click.option("--isa", default="", help="Lower the instruction set of the CPU kernels.")
@click.option("--dtype", "dtypes", multiple=True, default=("float32", "bfloat16"))
@click.option("--budget", default=8.0, help="Seconds of timed rounds, per case and dtype.")
def main(op: str, isa: str, dtypes: tuple[str, ...], budget: float) -> None:
    start("cpu", isa)
    name = "-".join(filter(None, (op, isa, "stages")))
    isa = _native.cpu_isa()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        variants = pool.map(lambda stage: build_variant(op, stage, isa, dtypes), STAGES)
        libraries = dict(zip(STAGES, variants, strict=True))
    libraries |= dict.fromkeys((WHOLE, CONTROL), _native.library_path())
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
    content = {"settings": WORKER_SETTINGS, "stages": report.rows_as_dicts(rows)}
    report.write_json(path, "cpu", content)
    for row in rows:
        costs = "  ".join(f"{stage} {text}" for stage, text in figures(row.ratios).items())
        print(f"{row.case:14} {row.dtype:8} {row.phase:8} {row.whole_ms:6.2f} ms: {costs}")
    print(f"written: {path.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
