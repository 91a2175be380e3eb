"""Every paper's model on a photograph, reference against accelerated: ``hybrid-kernels demo``."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from python_ref.analysis.photo import load_photo, middle_square, normalised

from ..models import accelerate, create_model
from . import accvit
from .comparison import NOTE, Comparison, compare_models, table_of
from .looks import LOOKS
from .picture import draw

MODELS = (  # the small one of every paper
    "accvit_tiny",
    "mrl_cvt_13",
    "pvt_v2_b0_mscsa",
    "emsnet_xxtiny",
    "mat_1",
    "partialformer_b0",
    "mcga",
)
SQUARE = 224  # the side that the models were designed for
RAGGED = 0.3  # of the photograph's sides, for which no window of ACC-ViT is made
ACCVIT_OP = "branch_project_in"  # that only ACC-ViT calls


def run_demo(
    console: Console,
    progress: Progress,
    names: Sequence[str],
    checkpoint: Path | None,
    image: Path | None,
    place: tuple[float, float],
    folder: Path,
) -> bool:
    """Compare, measure and draw; says whether reference and accelerated agree.

    Args:
        console: Where the table goes.
        progress: Where it says what it is at.
        names: Models of the seven papers, of ``list_models()``.
        checkpoint: Weights of all of them; random ones if ``None``.
        image: A picture file, or ``None`` for scikit-learn's photograph.
        place: Row and column whose attention is drawn, as shares in [0, 1).
        folder: Where the pictures are written; made if it is not there.

    Raises:
        ValueError: a model is unknown, or none of the papers'.
        ValueError: the checkpoint does not fit the model.
        OSError: the picture cannot be read, or a picture not be written.
    """
    papers = {name: _paper(name) for name in names}
    photo = load_photo(image)
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    comparisons: list[Comparison] = []
    task = progress.add_task("demo", total=2 * len(papers))
    for name, paper in papers.items():
        torch.manual_seed(0)
        model = create_model(name, checkpoint=checkpoint)
        progress.update(task, description=f"{name}: reference against accelerated")
        for images in _inputs(paper, photo):
            reference = copy.deepcopy(model).to(device)
            accelerated = accelerate(copy.deepcopy(reference))
            images = images.to(device)
            comparisons.append(compare_models(name, paper, reference, accelerated, images))
        progress.update(task, description=f"{name}: picture", advance=1)
        weights = checkpoint.name if checkpoint else "random weights"
        _draw(model.eval(), paper, photo, place, f"{name}, {weights}", folder / f"{name}.png")
        progress.advance(task)
    console.print(table_of(comparisons))
    console.print(f"{NOTE}\n\nfloat32 on {device}; what each model looks at: {folder}/<model>.png")
    return all(comparison.ok for comparison in comparisons)


def _paper(name: str) -> str:
    """Name of the paper that a model is from, by the operators that it calls."""
    with torch.device("meta"):
        modules = list(create_model(name).modules())
    used = {op for module in modules for op in getattr(module, "used_ops", ())}
    titles = {ACCVIT_OP: "ACC-ViT"} | {op: title for op, (title, _) in LOOKS.items()}
    for op, title in titles.items():
        if op in used:
            return title
    raise ValueError(f"{name} is none of the papers' models; take one like {', '.join(MODELS)}")


def _inputs(paper: str, photo: Tensor) -> Iterator[Tensor]:
    """The middle of the photograph and its mirror image; for ACC-ViT one, and a ragged one."""
    square = normalised(middle_square(photo, SQUARE))
    if paper != "ACC-ViT":
        yield torch.cat([square, square.flip(-1)])
    else:
        yield square
        size = [max(48, int(RAGGED * side)) for side in photo.shape[1:]]
        yield F.interpolate(normalised(photo), size, mode="bicubic", antialias=True)


def _draw(
    model: nn.Module,
    paper: str,
    photo: Tensor,
    place: tuple[float, float],
    title: str,
    path: Path,
) -> None:
    if paper == "ACC-ViT":
        images = normalised(photo)
        accvit.draw(accvit.explain(model, images, photo, place, f" ({title})"), path)
        return
    image = normalised(middle_square(photo, SQUARE)).double()  # for the least of differences
    look = next(function for known, function in LOOKS.values() if known == paper)
    shown = middle_square(photo, min(photo.shape[1:]))
    draw(look(model.double(), image, place), shown, place, f"{paper}: {title}", path)
