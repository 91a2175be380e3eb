"""Pictures of what the tools find."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from python_ref.analysis.attention import AttentionMap
from python_ref.analysis.fourier import log_spectrum, relative_log_amplitude

INK = "#222222"
HEAT = "magma"
DEPTH = colormaps["viridis"]
PANELS = 11  # beside the photograph


def draw_attention(
    maps: Sequence[AttentionMap], photo: Tensor, place: tuple[float, float], title: str, path: Path
) -> None:
    """The photograph with the place that looks, and what it looks at, mean over heads.

    Args:
        maps: see `attention_maps`; eleven, evenly chosen, if there are more.
        photo: (3, H, W) in [0, 1].
        place: row and column as shares.
        title: above the picture.
        path: file to write; its ending names the format.
    """
    chosen = [maps[i] for i in _evenly(len(maps), PANELS)]
    columns = min(4, len(chosen) + 1)
    rows = -(-(len(chosen) + 1) // columns)
    figure = _figure(3 * columns, 3.2 * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    height, width = photo.shape[1:]
    for axes in grid:
        axes.axis("off")
    grid[0].imshow(_pixels(photo))
    grid[0].plot(place[1] * width, place[0] * height, "o", color=INK, markeredgecolor="white")
    grid[0].set_title("the place that looks", fontsize=8, color=INK)
    for axes, shown in zip(grid[1 : len(chosen) + 1], chosen, strict=True):
        _overlay(axes, photo, shown.weights.mean(dim=0))
        name = shown.module + (f", {shown.label}" if shown.label else "")
        axes.set_title(name, fontsize=7, color=INK)
    figure.savefig(path, dpi=130)


def draw_heat(heats: Mapping[str, Tensor], photo: Tensor, title: str, path: Path) -> None:
    """The photograph, and beside it heat maps (H, W) in [0, 1] over it, by name."""
    figure = _figure(3.4 * (len(heats) + 1), 3.9, title)
    first, *others = figure.subplots(1, len(heats) + 1)
    first.imshow(_pixels(photo))
    first.axis("off")
    for axes, (name, heat) in zip(others, heats.items(), strict=True):
        _overlay(axes, photo, heat)
        axes.axis("off")
        axes.set_title(name, fontsize=9, color=INK)
    figure.savefig(path, dpi=130)


def draw_fourier(
    maps: Mapping[str, Tensor], branches: Mapping[str, Mapping[str, Tensor]], title: str, path: Path
) -> None:
    """Delta log amplitude by layer and, if there are any, by branch; curves and spectra of layers.

    Args:
        maps: output (B, C, H, W) of every layer, see `layer_maps`.
        branches: for every kind of branch its maps by block.
        title: above the picture.
        path: file to write; its ending names the format.
    """
    figure = _figure(13, 8.5, title)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 0.8))
    left, right = upper.subplots(1, 2)
    curves = [relative_log_amplitude(m) for m in maps.values()]
    left.plot([float(y[-1]) for _, y in curves], "o-", color=INK, label="layer", markersize=4)
    for kind, by_block in branches.items():
        deltas = [float(relative_log_amplitude(m)[1][-1]) for m in by_block.values()]
        positions = [_index(block, list(maps)) for block in by_block]
        left.plot(positions, deltas, "o--", markersize=3, linewidth=1, label=kind)
    left.set(xlabel="layer", ylabel="delta log amplitude", title="highest frequency against zero")
    left.legend(fontsize=8)
    for depth, (frequencies, amplitudes) in enumerate(curves):
        colour = DEPTH(depth / max(len(curves) - 1, 1))
        right.plot(frequencies.numpy() / np.pi, amplitudes.numpy(), color=colour, linewidth=1)
    right.set(xlabel="frequency / pi", title="relative log amplitude, first layer dark")
    names = [list(maps)[i] for i in _evenly(len(maps), 5)]
    for axes, name in zip(np.atleast_1d(lower.subplots(1, len(names))), names, strict=True):
        axes.imshow(log_spectrum(maps[name]).numpy(), cmap=HEAT)
        axes.set_title(name, fontsize=8, color=INK)
        axes.axis("off")
    figure.savefig(path, dpi=130)


def draw_strengths(shares: Sequence[float], found: Tensor, title: str, path: Path) -> None:
    """J(m) over the order m as a share of the patches."""
    figure = _figure(6.4, 4.6, title)
    axes = figure.subplots()
    axes.plot(shares, found.numpy(), "o-", color="#dc267f")
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="order m / (n - 2)",
        ylabel="interaction strength J(m)",
        ylim=(0, 1.1 * float(found.max())),
    )
    figure.savefig(path, dpi=130)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    return figure


def _pixels(photo: Tensor) -> np.ndarray:
    return photo.permute(1, 2, 0).numpy()


def _overlay(axes: Axes, photo: Tensor, heat: Tensor) -> None:
    """Heat of any size over the whole photograph in grey."""
    height, width = photo.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(photo.mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
    shown = heat.detach().numpy()
    axes.imshow(shown, cmap=HEAT, vmin=0, alpha=0.65, extent=extent, interpolation="nearest")


def _evenly(length: int, number: int) -> list[int]:
    """At most `number` indices below `length`, with first and last."""
    return sorted({round(i) for i in np.linspace(0, length - 1, min(length, number))})


def _index(block: str, names: Sequence[str]) -> int:
    """Position of the layer that contains a module of this name."""
    return next(i for i, name in enumerate(names) if f"{block}.".startswith(f"{name}."))
