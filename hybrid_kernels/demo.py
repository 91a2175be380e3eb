"""ACC-ViT on a photograph, reference against accelerated: ``hybrid-kernels demo``."""

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from python_ref.analysis.photo import load_photo, middle_square, normalised

from .demo_picture import draw, explain
from .measure import Clock, clock_for
from .models import accelerate, create_model

SQUARE = 224  # the side that the models were designed for
ROUNDS = 3
# Sums of millions of terms in another order: errors of two float32 runs scatter about each other
# by this share of the largest value even where both are right.
SCATTER = 1e-5


@dataclass(frozen=True)
class Agreement:
    """A result of both models against the reference in float64, as largest differences."""

    name: str
    reference: float
    accelerated: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.accelerated <= self.allowed


def run_demo(
    console: Console,
    name: str,
    checkpoint: Path | None,
    image: Path | None,
    pixel: tuple[int, int] | None,
    output: Path,
) -> bool:
    """Compare, time and draw; says whether reference and accelerated agree.

    Args:
        console: Where the tables go.
        name: A model of ``list_models()``.
        checkpoint: Its weights; random ones if ``None``.
        image: A picture file, or ``None`` for scikit-learn's photograph.
        pixel: Row and column in the photograph whose attention is drawn; ``None`` picks one.
        output: The picture to write.

    Raises:
        ValueError: the model is unknown, or the pixel outside the photograph.
        ValueError: the checkpoint does not fit the model.
        OSError: the picture cannot be read or written.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    photo = load_photo(image)
    height, width = photo.shape[1:]
    row, column = pixel or (21 * height // 50, 21 * width // 50)
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"--pixel {row} {column}: the picture has {height} rows, {width} columns")
    torch.manual_seed(0)
    reference = create_model(name, checkpoint=checkpoint).to(device)
    accelerated = accelerate(copy.deepcopy(reference))
    weights = checkpoint.name if checkpoint else "random weights"
    console.print(f"{name}, {weights}, float32 on {device}; photograph {height} x {width}\n")
    agreed = True
    for images in (normalised(middle_square(photo, SQUARE)), normalised(photo)):
        images = images.to(device)
        agreements = compare(reference, accelerated, images)
        agreed &= all(a.ok for a in agreements)
        size = f"{images.shape[2]} x {images.shape[3]}"
        console.print(_agreement_table(size, agreements))
        console.print(_time_table(size, reference, accelerated, images))
    images = normalised(photo).to(device)
    draw(explain(reference, images, photo, (row, column), f" ({weights})"), output)
    console.print(f"windows, attention and gates of pixel ({row}, {column}): {output}")
    return agreed


def results(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Logits, and the gradients of a classification loss."""
    images = images.detach().requires_grad_()
    parameters = list(model.parameters())
    logits = model(images)
    loss = F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long, device=images.device))
    of_image, *of_parameters = torch.autograd.grad(loss, [images, *parameters])
    yield "logits", logits.detach()
    yield "gradient of the image", of_image
    yield "gradient of the weights", torch.cat([g.flatten() for g in of_parameters])


def compare(reference: nn.Module, accelerated: nn.Module, images: Tensor) -> list[Agreement]:
    """Both models in float32 against the reference in float64, at most twice its error."""
    exact = results(copy.deepcopy(reference).double(), images.double())
    plain, fast = results(reference, images), results(accelerated, images)
    agreements = []
    for (name, truth), (_, a), (_, b) in zip(exact, plain, fast, strict=True):
        plain_error = (a - truth).abs().max().item()
        allowed = 2 * plain_error + SCATTER * truth.abs().max().item()
        agreements.append(Agreement(name, plain_error, (b - truth).abs().max().item(), allowed))
    return agreements


def measure(
    models: dict[str, nn.Module], images: Tensor
) -> dict[str, dict[str, tuple[float, float]]]:
    """(seconds, peak bytes) by phase and model: medians of interleaved rounds."""
    clock = clock_for(images.device.type)
    measured = {}
    for phase, run in (("forward", _infer), ("forward + backward", _train)):
        calls = {name: partial(run, model, images) for name, model in models.items()}
        measured[phase] = _interleaved(clock, calls)
    return measured


def _interleaved(
    clock: Clock, calls: dict[str, Callable[[], None]]
) -> dict[str, tuple[float, float]]:
    peaks = {name: clock.peak_bytes(call) for name, call in calls.items()}  # and a warm-up
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            seconds[name].append(clock.time(call)[1].seconds)
    return {name: (statistics.median(seconds[name]), peaks[name]) for name in calls}


def _infer(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)


def _train(model: nn.Module, images: Tensor) -> None:
    for _ in results(model, images):
        pass


def _agreement_table(size: str, agreements: list[Agreement]) -> Table:
    table = Table(title=f"{size}: largest difference from the reference in float64")
    table.title_justify = "left"
    table.add_column("")
    for heading in ("reference", "accelerated", "allowed", ""):
        table.add_column(heading, justify="right")
    for a in agreements:
        verdict = "[green]agrees[/]" if a.ok else "[red]disagrees[/]"
        errors = (f"{value:.2e}" for value in (a.reference, a.accelerated, a.allowed))
        table.add_row(a.name, *errors, verdict)
    return table


def _time_table(size: str, reference: nn.Module, accelerated: nn.Module, images: Tensor) -> Table:
    table = Table(title=f"{size}: median of {ROUNDS} interleaved rounds, and peak extra memory")
    table.title_justify = "left"
    table.add_column("")
    for heading in ("reference", "accelerated", "faster", "peak", "accelerated", "less"):
        table.add_column(heading, justify="right")
    measured = measure({"reference": reference, "accelerated": accelerated}, images)
    for phase, by_model in measured.items():
        (slow, much), (fast, little) = by_model["reference"], by_model["accelerated"]
        table.add_row(
            phase,
            *(f"{slow * 1e3:.0f} ms", f"{fast * 1e3:.0f} ms", f"{slow / fast:.2f}x"),
            *(f"{much / 1e6:.0f} MB", f"{little / 1e6:.0f} MB", f"{much / max(little, 1):.2f}x"),
        )
    return table
