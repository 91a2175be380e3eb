"""Whole models: a training step and inference, reference against accelerated.

A training step is forward, loss, backward and AdamW. What remains of the accelerated step, operator
by operator, is written beside the times.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench import report
from bench.main import common_options, progress_bar, start
from bench.timing import interleave, median_faults, median_ms, quartiles_ms
from hybrid_kernels.measure import Clock, Sample, clock_for
from hybrid_kernels.models import accelerate, create_model

TRAIN, INFER = "training step", "inference"
REFERENCE, ACCELERATED, COMPILE = "reference", "accelerated", "compile"
TOP_OPERATORS = 25


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


CASES = (
    ModelCase("accvit_tiny", TRAIN, 8, (224, 224)),
    ModelCase("accvit_tiny", INFER, 8, (224, 224)),
    ModelCase("accvit_femto", INFER, 8, (224, 224)),
)
CUDA_CASES = (
    ModelCase("accvit_tiny", TRAIN, 64, (224, 224), torch.bfloat16),
    ModelCase("accvit_tiny", TRAIN, 64, (224, 224)),
    ModelCase("accvit_tiny", INFER, 64, (224, 224), torch.bfloat16),
    ModelCase("accvit_tiny", INFER, 4, (800, 1333), torch.bfloat16),
)
QUICK_CASES = (
    ModelCase("accvit_femto", TRAIN, 2, (224, 224)),
    ModelCase("accvit_femto", INFER, 2, (224, 224)),
)


class Step:
    """One model at work on fixed images: a contestant of `bench.timing`."""

    def __init__(self, name: str, model: nn.Module, case: ModelCase, device: str) -> None:
        self.name, self._case = name, case
        self._model = model.to(device).train(case.mode == TRAIN)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(case.batch, 3, *case.size, generator=generator)
        self._images = images.to(device).contiguous(memory_format=torch.channels_last)
        self._labels = torch.arange(case.batch, device=device) % 1000
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def logits(self) -> Tensor:
        lower = self._case.dtype != torch.float32
        with torch.autocast(self._images.device.type, self._case.dtype, enabled=lower):
            return self._model(self._images)

    def run(self) -> None:
        if self._case.mode == INFER:
            with torch.inference_mode():
                self.logits()
            return
        F.cross_entropy(self.logits().float(), self._labels).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def round(self, clock: Clock) -> dict[str, Sample]:
        return {self._case.mode: clock.time(self.run)[1]}


def steps(case: ModelCase, device: str, with_compile: bool) -> list[Step]:
    """The contestants: equal weights, whose outputs are shown to agree before they are timed."""
    torch.manual_seed(0)
    reference = create_model(case.model)
    accelerated = accelerate(copy.deepcopy(reference))
    everyone = [
        Step(REFERENCE, reference, case, device),
        Step(ACCELERATED, accelerated, case, device),
    ]
    if with_compile:
        everyone.append(Step(COMPILE, torch.compile(copy.deepcopy(reference)), case, device))
    with torch.no_grad():
        outputs = {step.name: step.logits().float() for step in everyone}
    truth = outputs[REFERENCE]
    tolerance = (1e-3 if case.dtype == torch.float32 else 1e-1) * truth.abs().max().item()
    for name, value in outputs.items():
        error = (value - truth).abs().max().item()
        if not error <= tolerance:
            raise RuntimeError(
                f"{name} disagrees with the reference on {case.name}: largest difference of "
                f"logits {error:.3g}, allowed {tolerance:.3g}; nothing was measured"
            )
    return everyone


def measure_model(
    case: ModelCase, device: str, budget_s: float, with_compile: bool
) -> tuple[ModelRow, str]:
    """One row, and the profile of the accelerated step as text."""
    clock = clock_for(device)
    everyone = steps(case, device, with_compile)
    samples = {
        name: phases[case.mode]
        for name, phases in interleave(everyone, clock, budget_s, (3, 30)).items()
    }
    ms = {name: median_ms(values) for name, values in samples.items()}
    best = min((name for name in ms if name != ACCELERATED), key=ms.__getitem__)
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
    )
    return row, profile_of(everyone[1].run, device)


def profile_of(call: Callable[[], None], device: str) -> str:
    """Where the time of a call goes, by operator, the costliest first."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        call()
    return recorded.key_averages().table(
        sort_by=f"self_{device}_time_total", row_limit=TOP_OPERATORS, max_name_column_width=48
    )


@click.command()
@common_options
@click.option("--compile", "with_compile", is_flag=True, help="torch.compile too: minutes.")
def main(device: str, quick: bool, isa: str, with_compile: bool) -> None:
    """Measure training steps and inference of ACC-ViT, reference against accelerated."""
    start(device, isa)
    cases = QUICK_CASES if quick else CUDA_CASES if device == "cuda" else CASES
    name = "models" + (f"-{isa}" if isa else "") + ("-partial" if quick else "")
    folder = report.results_folder(device)
    rows, profiles = [], []
    with progress_bar() as progress:
        task = progress.add_task("models", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            row, text = measure_model(case, device, 3 if quick else 15, with_compile)
            progress.console.print(_line(row))
            rows.append(report.round_floats(asdict(row)))
            profiles.append(f"{case.name}, accelerated\n\n{text}\n")
            progress.advance(task)
    report.write_json(folder / f"{name}.json", device, {"rows": rows})
    report.write_csv(folder / f"{name}.csv", [report.flatten(row) for row in rows])
    (folder / f"{name}-profile.txt").write_text("\n".join(profiles))
    where = folder.relative_to(report.machine.ROOT)
    report.terminal().print(f"written: {where}/{name}.json, .csv, {name}-profile.txt")


def _line(row: ModelRow) -> str:
    times = "  ".join(f"{name} {ms:.1f}" for name, ms in row.ms.items())
    peaks = "  ".join(f"{name} {mb:.0f}" for name, mb in row.peak_mb.items())
    return f"{row.case:48} {row.speedup:5.2f}x   ms: {times}   peak MB: {peaks}"


if __name__ == "__main__":
    main()
