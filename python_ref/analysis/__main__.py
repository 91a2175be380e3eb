"""Look into a model with a photograph: ``python -m python_ref.analysis TOOL --model NAME``."""

import importlib.util
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import click
import torch
from torch import Tensor

from python_ref.analysis import (
    attention_maps,
    branch_maps,
    grad_cam,
    interactions,
    layer_maps,
    near_pairs,
    orders,
    strengths,
    value_of_patches,
)
from python_ref.analysis.interaction import SHARES
from python_ref.analysis.photo import load_photo, middle_square, normalised
from python_ref.models import create_model
from python_ref.models.backbone import Backbone
from python_ref.models.weights import load_weights

_OPTIONS = (
    click.option("--model", "name", default="emsnet_xxtiny", show_default=True),
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Trained weights, .safetensors or written by torch.save; random ones without it.",
    ),
    click.option(
        "--image",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Any picture; default is a photograph that comes with scikit-learn.",
    ),
    click.option("--size", default=224, show_default=True, help="Side of the square input."),
    click.option("--seed", default=0, show_default=True, help="Of random weights and samples."),
    click.option(
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        required=True,
        help="Picture to write; the ending names the format.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Draw what a model of python_ref does with a photograph."""
    packages = {"matplotlib": "matplotlib", "PIL": "pillow", "sklearn": "scikit-learn"}
    missing = [p for module, p in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise click.UsageError(f"this needs {', '.join(missing)}; `pip install {missing[0]}`")


def tool(function: Callable) -> Callable:
    """A command with the options that all tools have; bad values become usage errors.

    The function takes the model in eval mode, the photograph (3, size, size), the title and the
    file to write, then its own options.
    """

    def run(
        name: str,
        checkpoint: Path | None,
        image: Path | None,
        size: int,
        seed: int,
        output: Path,
        **own: object,
    ) -> None:
        torch.manual_seed(seed)
        try:
            model = create_model(name).eval()
            if checkpoint is not None:
                load_weights(model, checkpoint)
            photo = middle_square(load_photo(image), size)
            weights = checkpoint.name if checkpoint else "random weights"
            function(model, photo, f"{name} ({weights})", output, **own)
        except (OSError, ValueError) as problem:
            raise click.UsageError(str(problem)) from problem
        click.echo(f"{function.__name__.replace('_', ' ')} of {name}: {output}")

    own = getattr(function, "__click_params__", [])
    run.__click_params__, run.__doc__ = own, function.__doc__
    command = reduce(lambda f, option: option(f), reversed(_OPTIONS), run)
    return main.command(function.__name__.replace("_", "-"))(command)


@tool
@click.option(
    "--place",
    nargs=2,
    type=click.FloatRange(0, 1, max_open=True),
    default=(0.4, 0.4),
    show_default=True,
    help="Row and column of what looks, as shares of the picture.",
)
def attention(
    model: Backbone, photo: Tensor, title: str, output: Path, place: tuple[float, float]
) -> None:
    """What one place of the image looks at, in every attention."""
    from python_ref.analysis.picture import draw_attention

    maps = attention_maps(model, normalised(photo), place)
    draw_attention(maps, photo, place, f"Attention, mean over heads: {title}", output)


@tool
@click.option("--class", "label", type=int, help="Whose evidence; default are the likeliest three.")
def gradcam(model: Backbone, photo: Tensor, title: str, output: Path, label: int | None) -> None:
    """Which part of the image speaks for a class."""
    from python_ref.analysis.picture import draw_heat

    image = normalised(photo)
    with torch.no_grad():
        likely = model(image).softmax(dim=1)[0]
    labels = likely.topk(3).indices.tolist() if label is None else [label]
    found = grad_cam(model, image.expand(len(labels), -1, -1, -1), labels)
    heats = {f"class {i}, {likely[i]:.1%}": heat for i, heat in zip(labels, found, strict=True)}
    draw_heat(heats, photo, f"Grad-CAM: {title}", output)


@tool
def fourier(model: Backbone, photo: Tensor, title: str, output: Path) -> None:
    """Which frequencies every layer passes on."""
    from python_ref.analysis.picture import draw_fourier

    image = normalised(photo)
    branches: dict[str, dict[str, Tensor]] = {}
    if any("propagate_conv" in getattr(m, "used_ops", ()) for m in model.modules()):
        for name, found in branch_maps(model, image).items():
            module, label = name.split(", ")
            block, _, branch = module.rpartition(".")
            branches.setdefault(f"{branch}, {label}", {})[block] = found
    draw_fourier(layer_maps(model, image), branches, f"Fourier analysis: {title}", output)


@tool
@click.option("--class", "label", type=int, help="Whose log-odds; default is the likeliest.")
@click.option("--patch", default=14, show_default=True, help="Side of the patches in pixels.")
@click.option("--pairs", default=8, show_default=True, help="Pairs of patches; the thesis has 200.")
@click.option(
    "--contexts", default=8, show_default=True, help="Contexts of a pair; the thesis has 100."
)
def interaction(
    model: Backbone,
    photo: Tensor,
    title: str,
    output: Path,
    label: int | None,
    patch: int,
    pairs: int,
    contexts: int,
) -> None:
    """How strongly near patches interact, by the number of others that are shown."""
    from python_ref.analysis.picture import draw_strengths

    image = normalised(photo)
    if label is None:
        with torch.no_grad():
            label = int(model(image).argmax())
    side = -(-image.shape[2] // patch)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    found = interactions(
        value_of_patches(model, image, label, patch),
        side * side,
        near_pairs(side, side, pairs, generator),
        orders(side * side),
        contexts,
        generator,
    )
    draw_strengths(SHARES, strengths(found), f"Interactions: {title}, class {label}", output)


if __name__ == "__main__":
    main()
