"""Whole models: a training step and inference, reference against accelerated.

A training step is forward, loss, backward and AdamW. Beside the times stand the agreement of both
models by the accuracy rule, their peak memory and their layout copies; what remains of the
accelerated step, operator by operator, is written to a text file.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from bench import report
from bench.main import common_options, progress_bar, start
from bench.timing import interleave, median_faults, median_ms, quartiles_ms
from hybrid_kernels.agreement import compare
from hybrid_kernels.layout import layout_copies
from hybrid_kernels.measure import Clock, Sample, clock_for
from hybrid_kernels.models import accelerate, create_model

TRAIN, INFER = "training step", "inference"
REFERENCE, ACCELERATED, COMPILE = "reference", "accelerated", "compile"
TOP_OPERATORS = 25
# The library's products, which accelerating exchanges nothing of.
LIBRARY = re.compile(r"aten::(mm|addmm|bmm|baddbmm|\w*convolution\w*|_slow_conv\w*|thnn_conv\w*)")


@dataclass(frozen=True)
class ModelCase:
    """A model, what is done with it, and its input."""

    model: str
    mode: str
    batch: int
    size: tuple[int, int]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.model} {self.mode} {self.batch}x{self.size[0]}x{self.size[1]} {kind}"


@dataclass(frozen=True)
class ModelRow:
    """One line of results; speed-up and memory against the faster of reference and compile."""

    case: str
    rounds: int
    ms: dict[str, float]
    accelerated_quartiles_ms: tuple[float, float]
    images_per_s: float
    best_baseline: str
    speedup: float
    peak_mb: dict[str, float]
    page_faults: dict[str, int]
    error_of_allowed: dict[str, float]  # "outputs", "gradients": above 1 they disagree
    layout_copies: dict[str, int]
    library_percent: float  # of the accelerated time, in the library's products


MODELS = (
    "partialformer_b1",
    "mat_2",
    "mcga",
    "pvt_v2_b1_mscsa",
    "mrl_cvt_13",
    "emsnet_tiny",
    "accvit_tiny",
    "mhvn",
)
# Batch and size: as for classification, and ragged as for dense prediction.
SHAPES = {"cpu": ((8, (224, 224)), (1, (256, 320))), "cuda": ((64, (224, 224)), (4, (800, 1333)))}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
QUICK_SHAPES = ((1, (224, 224)),)
AGREEMENT_IMAGES = 3
BUDGET_S, QUICK_BUDGET_S = 4, 0.5  # of timed rounds, per case


def cases_of(models: Sequence[str], device: str, quick: bool) -> list[ModelCase]:
    """Training and inference of every model at every size in every dtype."""
    return [
        ModelCase(model, mode, batch, size, dtype)
        for model in models
        for batch, size in (QUICK_SHAPES if quick else SHAPES[device])
        for dtype in DTYPES[device]
        for mode in (TRAIN, INFER)
    ]


class Step:
    """One model at work on fixed images: a contestant of `bench.timing`."""

    def __init__(self, name: str, model: nn.Module, case: ModelCase, device: str) -> None:
        self.name, self._case = name, case
        self._model, self._images = model, images_of(case).to(device)
        self._labels = torch.arange(case.batch, device=device) % 1000
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def outputs(self) -> list[Tensor]:
        lower = self._case.dtype != torch.float32
        with torch.autocast(self._images.device.type, self._case.dtype, enabled=lower):
            return pytree.tree_leaves(self._model(self._images))

    def loss(self) -> Tensor:
        """Cross entropy of logits; of maps, as MHVN returns them, the mean square."""
        outputs = [out.float() for out in self.outputs()]
        if outputs[0].ndim == 2:
            return F.cross_entropy(outputs[0], self._labels)
        return torch.stack([out.square().mean() for out in outputs]).sum()

    def run(self) -> None:
        if self._case.mode == INFER:
            with torch.inference_mode():
                self.outputs()
            return
        self.loss().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def layout_copies(self) -> int:
        return len(layout_copies(self._model, self._images))

    def round(self, clock: Clock) -> dict[str, Sample]:
        return {self._case.mode: clock.time(self.run)[1]}


def measure_model(
    case: ModelCase, device: str, budget_s: float, with_compile: bool
) -> tuple[ModelRow, str]:
    """One row, and the profile of the accelerated step as text."""
    torch.manual_seed(0)
    reference = create_model(case.model).to(device).train(case.mode == TRAIN)
    accelerated = accelerate(copy.deepcopy(reference))
    everyone = [
        Step(REFERENCE, reference, case, device),
        Step(ACCELERATED, accelerated, case, device),
    ]
    copies = {step.name: step.layout_copies() for step in everyone}
    errors = agreement(reference, accelerated, case, device)
    if with_compile:
        everyone.append(Step(COMPILE, torch.compile(copy.deepcopy(reference)), case, device))
    clock = clock_for(device)
    samples = {
        name: phases[case.mode]
        for name, phases in interleave(everyone, clock, budget_s, (3, 30)).items()
    }
    ms = {name: median_ms(values) for name, values in samples.items()}
    best = min((name for name in ms if name != ACCELERATED), key=ms.__getitem__)
    events = events_of(everyone[1].run, device)
    row = ModelRow(
        case=case.name,
        rounds=len(samples[ACCELERATED]),
        ms=ms,
        accelerated_quartiles_ms=quartiles_ms(samples[ACCELERATED]),
        images_per_s=case.batch / ms[ACCELERATED] * 1e3,
        best_baseline=best,
        speedup=ms[best] / ms[ACCELERATED],
        peak_mb={step.name: clock.peak_bytes(step.run) / 1e6 for step in everyone},
        page_faults={name: median_faults(values) for name, values in samples.items()},
        error_of_allowed=errors,
        layout_copies=copies,
        library_percent=library_percent(events, device),
    )
    return row, table_of(events, device)


def agreement(
    reference: nn.Module, accelerated: nn.Module, case: ModelCase, device: str
) -> dict[str, float]:
    """Errors of copies of both models, as shares of what is allowed."""
    images = images_of(replace(case, batch=AGREEMENT_IMAGES)).to(device)
    models = copy.deepcopy(reference), copy.deepcopy(accelerated)
    outputs, *gradients = compare(*models, images, case.dtype, case.mode == TRAIN)
    errors = {"outputs": outputs.share}
    if gradients:
        errors["gradients"] = max(gradients, key=lambda a: (not a.ok, a.share)).share
    return errors


def images_of(case: ModelCase) -> Tensor:
    """The images of a case, channels-last."""
    images = torch.randn(case.batch, 3, *case.size, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def events_of(call: Callable[[], None], device: str) -> EventList:
    """The operators of a call, with their times."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        call()
    return recorded.key_averages()


def library_percent(events: EventList, device: str) -> float:
    """Part of the time that the library's matrix products and convolutions take."""
    operators = [event for event in events if event.device_type == DeviceType.CPU]  # not kernels
    times = {event.key: getattr(event, _self_time(device)) for event in operators}
    library = sum(time for name, time in times.items() if LIBRARY.fullmatch(name))
    return 100 * library / sum(times.values())


def table_of(events: EventList, device: str) -> str:
    """Where the time of a call goes, by operator, the costliest first."""
    return events.table(
        sort_by=_self_time(device), row_limit=TOP_OPERATORS, max_name_column_width=48
    )


def _self_time(device: str) -> str:
    return "self_cpu_time_total" if device == "cpu" else "self_device_time_total"


@click.command()
@common_options
@click.option("--models", metavar="NAME,...", help=f"Instead of {', '.join(MODELS)}.")
@click.option("--compile", "with_compile", is_flag=True, help="torch.compile too: minutes.")
def main(device: str, quick: bool, isa: str, models: str | None, with_compile: bool) -> None:
    """Measure training steps and inference of whole models, reference against accelerated."""
    start(device, isa)
    cases = cases_of(models.split(",") if models else MODELS, device, quick)
    budget_s = QUICK_BUDGET_S if quick else BUDGET_S
    name = "models" + (f"-{isa}" if isa else "") + ("-partial" if quick or models else "")
    rows, profiles = [], []
    with progress_bar() as progress:
        task = progress.add_task("models", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            row, text = measure_model(case, device, budget_s, with_compile)
            progress.console.print(_line(row))
            rows.append(row)
            profiles.append(f"{case.name}, accelerated\n\n{text}\n")
            progress.advance(task)
    folder = report.results_folder(device)
    report.write_json(folder / f"{name}.json", device, {"rows": report.rows_as_dicts(rows)})
    report.write_csv(folder / f"{name}.csv", [report.flatten(asdict(row)) for row in rows])
    (folder / f"{name}-profile.txt").write_text("\n".join(profiles))
    where = folder.relative_to(report.machine.ROOT)
    report.terminal().print(f"written: {where}/{name}.json, .csv, {name}-profile.txt")
    wrong = [row.case for row in rows if not all(e <= 1 for e in row.error_of_allowed.values())]
    if wrong:
        raise click.ClickException(f"accelerated disagrees with the reference: {', '.join(wrong)}")


def _line(row: ModelRow) -> str:
    times = "  ".join(f"{name} {ms:.1f}" for name, ms in row.ms.items())
    peaks = "  ".join(f"{name} {mb:.0f}" for name, mb in row.peak_mb.items())
    errors = "  ".join(f"{name} {share:.2f}" for name, share in row.error_of_allowed.items())
    return (
        f"{row.case:52} {row.speedup:5.2f}x   ms: {times}   peak MB: {peaks}   "
        f"error / allowed: {errors}"
    )


if __name__ == "__main__":
    main()
