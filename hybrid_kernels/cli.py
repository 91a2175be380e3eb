"""The command line: ``hybrid-kernels info | check | bench | count | tune | demo``."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

FAILED, USAGE, UNAVAILABLE = 1, 2, 3
BACKENDS = ("reference", "cpu", "cuda", "triton")
CHECKOUT = Path(__file__).resolve().parent.parent
EXIT_CODES = """
\b
Exit codes:
  0  all is well
  1  a check failed, results disagree, or a benchmark stopped
  2  the command line is wrong, or a file or package that it needs is not there
  3  this machine has no GPU, or the backend asked for is not available on it
"""


class Problem(click.ClickException):
    """An error of the user's: its message goes to stderr, without a traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="hybrid-kernels", prog_name="hybrid-kernels")
def main() -> None:
    """Fused kernels for vision backbones that mix attention and convolution."""


@main.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def info(as_json: bool) -> None:
    """Versions, processor, GPU, and which backend serves each op, and why."""
    from .info import gather

    facts = gather()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    console = _console()
    console.print(_facts_table(facts))
    table = Table(title=f"ops, backend {facts['backend']!r}", title_justify="left")
    for heading in ("op", "tensors on", "served by", "because"):
        table.add_column(heading)
    for line in facts["ops"]:
        table.add_row(line["op"], line["device"], line["backend"], line["reason"])
    console.print(table)
    console.print(_forms_table(facts["single_query_forms"]))
    console.print(_regimes_table(facts["multiscale_regimes"]))
    for title, wanted in (("accelerate exchanges", True), ("not fused yet, reference", False)):
        names = [op for op, is_fused in facts["model_ops"].items() if is_fused is wanted]
        console.print(f"{title}: {', '.join(names) or 'none'}", soft_wrap=True)


def _forms_table(forms: list[dict]) -> Table:
    title = (
        "single_query_attention_absorbed: multiply-adds per token of its two forms, in float32\n"
        "absorbed where 2 C G <= (C + G)(d + dv)"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("shape", "G", "heads", "C", "absorbed", "projected", "form", "attention"):
        table.add_column(heading)
    for form in forms:
        numbers = ("queries", "heads", "channels", "absorbed_cost", "projected_cost")
        table.add_row(
            form["name"],
            *(str(form[key]) for key in numbers),
            "absorbed" if form["is_absorbed"] else "projected",
            "kernel" if form["is_kernel"] else "torch's products",
        )
    return table


def _regimes_table(regimes: list[dict]) -> Table:
    title = (
        "multiscale_attention on a CPU: whether the rows of one head stay in the cache;\n"
        "multiscale_fits_cache(queries, keys) tells it for any shape"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("shape", "queries", "keys", "one head"):
        table.add_column(heading)
    for regime in regimes:
        work = "in the cache" if regime["fits_cache"] else "keys in tiles, read again"
        table.add_row(regime["name"], str(regime["queries"]), str(regime["keys"]), work)
    return table


def _facts_table(facts: dict) -> Table:
    table = Table(show_header=False, box=None)
    cpu, library = facts["cpu"], facts["library"]
    for name, version in facts["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("compiler", library["compiler"])
    table.add_row("library", library["path"])
    archs = ", ".join(f"sm_{arch}" for arch in library["cuda_archs"] or ())
    emulated = f"host emulator, {library['emulator']} build" if library["emulator"] else None
    cuda = f"{library['cuda_version']} for {archs}" if archs else "not built"
    table.add_row("CUDA code", emulated or cuda)
    table.add_row("processor", f"{cpu['model']}, {cpu['threads']} threads")
    available = ", ".join(cpu["isas_available"])
    table.add_row("instruction set", f"{cpu['isa_in_use']} in use; available: {available}")
    table.add_row("output cache", _output_cache_text(cpu["output_cache"]))
    gpus = [f"{gpu['name']} ({gpu['arch']}, {gpu['memory_gb']} GB)" for gpu in facts["gpus"]]
    table.add_row("GPU", "; ".join(gpus) or "none")
    return table


def _output_cache_text(cache: dict) -> str:
    if not cache["supported"]:
        return "none: torch >= 2.11 is needed, so large CPU outputs are fresh memory every time"
    return f"keeps up to {cache['limit_mb']:g} MiB of freed CPU outputs"


@main.command(epilog=EXIT_CODES)
@click.option("--only", multiple=True, metavar="OP", help="Only this op; may be repeated.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Only this backend.")
@click.option("--quick", is_flag=True, help="Small samples in float32 and bfloat16.")
def check(only: tuple[str, ...], backend: str | None, quick: bool) -> None:
    """Prove every op on this machine: values and gradients, on every backend that it has.

    An error may be at most twice that of the plain PyTorch reference in the same dtype, both
    measured against the reference in float64.
    """
    from . import selfcheck
    from .samples import declarations

    known = list(declarations())
    if unknown := [op for op in only if op not in known]:
        raise Problem(f"--only {unknown[0]}: the ops are {', '.join(known)}", USAGE)
    try:
        chosen = selfcheck.targets(backend)
    except RuntimeError as problem:
        raise Problem(str(problem), UNAVAILABLE) from problem
    begin = time.perf_counter()
    outcomes: dict = {}
    work = selfcheck.rounds(only or known, quick)
    with _progress() as progress:
        for declaration, dtype, sample in progress.track(work, description="check"):
            selfcheck.prove(declaration, dtype, sample, chosen, outcomes)
    failures = [failure for outcome in outcomes.values() for failure in outcome.failures]
    console = _console()
    console.print(_outcomes_table(list(outcomes.values())))
    count = sum(outcome.samples for outcome in outcomes.values())
    console.print(f"{count} samples, {time.perf_counter() - begin:.0f} s")
    if failures:
        more = "" if len(failures) <= 10 else f"\nand {len(failures) - 10} more"
        raise Problem("\n".join(failures[:10]) + more, FAILED)
    if not count:
        raise Problem("nothing was checked: no backend of this machine serves these ops", FAILED)


def _outcomes_table(outcomes: list) -> Table:
    table = Table()
    for heading in ("op", "backend", "tensors on", "dtype"):
        table.add_column(heading)
    for heading in ("samples", "error / allowed", ""):
        table.add_column(heading, justify="right")
    for o in sorted(outcomes, key=lambda o: o.op):
        verdict = "[red]failed[/]" if o.failures else "[green]ok[/]"
        dtype = str(o.dtype).removeprefix("torch.")
        cells = (o.op, o.target.name, o.target.device, dtype, str(o.samples), f"{o.worst:.2f}")
        table.add_row(*cells, verdict)
    return table


@main.command(epilog=EXIT_CODES)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--quick", is_flag=True, help="A few cases, without torch.compile.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU if there is one."
)
@click.option("--isa", help="Lower the instruction set of the CPU kernels, for example to avx2.")
def bench(names: tuple[str, ...], quick: bool, device: str | None, isa: str | None) -> None:
    """Measure ops, and whole models, against their baselines and the roofline of this machine.

    NAME is an op, or "models"; everything without one. Results go to bench/results of the source
    checkout, which this command needs: the scripts are no part of the installed package.
    """
    known = _bench_scripts(CHECKOUT)
    if unknown := [name for name in names if name not in known]:
        raise Problem(f"nothing is called {unknown[0]!r}; there are {', '.join(known)}", USAGE)
    options = ["--quick"] if quick else []
    options += ["--device", device] if device else []
    options += ["--isa", isa] if isa else []
    for name in names or known:
        command = [sys.executable, "-m", f"bench.bench_{name}", *options]
        status = subprocess.run(command, cwd=CHECKOUT).returncode
        if status:
            raise Problem(f"the benchmark of {name} stopped with status {status}", FAILED)


def _bench_scripts(checkout: Path) -> list[str]:
    scripts = sorted((checkout / "bench").glob("bench_*.py"))
    if not scripts:
        raise Problem(
            f"there are no benchmarks beside {checkout / 'hybrid_kernels'}: they are part of the "
            "source only. Clone the repository, run `make build` there, and start "
            "`.venv/bin/hybrid-kernels bench` from it",
            USAGE,
        )
    return [script.stem.removeprefix("bench_") for script in scripts]


@main.command(epilog=EXIT_CODES)
@click.argument("name", required=False)
@click.option("--size", default="224", show_default=True, help="Image side, or ROWSxCOLUMNS.")
@click.option(
    "--convention",
    type=click.Choice(["macs", "modules", "fvcore", "mmcv", "paper"]),
    default="macs",
    show_default=True,
    help="What counts; `paper` is as the model's own paper counted.",
)
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="Of the family; repeatable.")
@click.option("--depth", default=2, show_default=True, help="How deep modules are told apart.")
@click.option("--published", is_flag=True, help="All tables of the papers instead of one model.")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --published: write the tables to this file.",
)
def count(
    name: str | None,
    size: str,
    convention: str,
    option: tuple[str, ...],
    depth: int,
    published: bool,
    markdown: Path | None,
) -> None:
    """Parameters and multiply-accumulates of a model, by module, beside its paper's figures."""
    from . import count as counting

    console = _console()
    if published:
        lines = list(counting.markdown())
        if markdown is None:
            console.print("\n".join(lines), markup=False)
        else:
            markdown.write_text("\n".join(lines) + "\n")
        return
    if name is None:
        raise Problem("name a model, or ask for --published", USAGE)
    options, pixels = _parse_options(option), _parse_size(size)
    try:
        found = counting.published_rows(name, pixels, options)
        if convention == "paper" and not found:
            raise Problem(f"no paper prints figures for {name} with these options", USAGE)
        training = convention == "paper" and found[0].training
        counted = counting.count_model(name, pixels, options, training)
    except ValueError as problem:
        raise Problem(str(problem), USAGE) from problem
    weights = found[0].convention if convention == "paper" else convention
    console.print(counting.module_table(counted, weights, depth))
    if found:
        console.print(counting.published_table(found))


def _parse_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if not all(side.isdigit() and int(side) for side in sides) or len(sides) > 2:
        raise Problem(f"--size {text}: a number, or ROWSxCOLUMNS, for example 800x1280", USAGE)
    return int(sides[0]), int(sides[-1])


def _parse_options(pairs: tuple[str, ...]) -> dict:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise Problem(f"--option {pair}: write KEY=VALUE", USAGE)
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


@main.command(epilog=EXIT_CODES)
@click.argument("names", nargs=-1, metavar="[OP]...")
def tune(names: tuple[str, ...]) -> None:
    """Find the fastest launch settings of the Triton kernels on this machine's GPU."""
    import torch

    if not torch.cuda.is_available():
        raise Problem(
            "tuning measures kernels on an NVIDIA GPU, and torch sees none here "
            "(torch.cuda.is_available() is False)",
            UNAVAILABLE,
        )
    if importlib.util.find_spec("triton") is None:
        raise Problem("triton is not installed; `pip install triton`", USAGE)
    from .triton import tune as tuning

    try:
        tuning.tune(names, report=click.echo)
    except ValueError as problem:
        raise Problem(str(problem), USAGE) from problem


@main.command(epilog=EXIT_CODES)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Any picture; default is a photograph that comes with scikit-learn.",
)
@click.option(
    "--place",
    nargs=2,
    type=click.FloatRange(0, 1, max_open=True),
    default=(0.42, 0.42),
    show_default=True,
    help="Row and column of what looks, as shares of the picture.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the pictures.",
)
@click.option(
    "--models",
    metavar="NAME,...",
    help="Models of the seven papers; default is the small one of each.",
)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trained weights of one model, .safetensors or of torch.save; random ones without it.",
)
def demo(
    image: Path | None,
    place: tuple[float, float],
    output: Path,
    models: str | None,
    checkpoint: Path | None,
) -> None:
    """Run each paper's model on a photograph, reference against accelerated, and draw it.

    Prints whether outputs and gradients agree by the accuracy rule, times of a forward pass and of
    a training step, peak memory, and the copies of activations that only change their layout.
    Draws what each model's attention looks at.
    """
    packages = {"matplotlib": "matplotlib", "PIL": "pillow", "sklearn": "scikit-learn"}
    missing = [p for module, p in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        install = f"pip install {' '.join(missing)}"
        raise Problem(f"the demo needs {', '.join(missing)}; `{install}`", USAGE)
    from .demo import MODELS, run_demo

    names = models.split(",") if models else MODELS
    if checkpoint and len(names) > 1:
        raise Problem("--checkpoint holds the weights of one model; name it with --models", USAGE)
    try:
        with _progress() as progress:
            agreed = run_demo(_console(), progress, names, checkpoint, image, place, output)
    except (OSError, RuntimeError, ValueError) as problem:
        raise Problem(str(problem), USAGE) from problem
    if not agreed:
        raise Problem("accelerated and reference disagree beyond the tolerance", FAILED)


def _console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty() and "FORCE_COLOR" not in os.environ,
    )
