"""Draw a `Look`: the photograph beside strips of panels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from .looks import Look, Panel, Strip
from .style import DIVERGING, DPI, INK, TITLE, around, frame

STRIP_HEIGHT, PHOTO_WIDTH, WIDTH = 2.6, 4.2, 14  # inches


def draw(look: Look, photo: Tensor, place: tuple[float, float], title: str, path: Path) -> None:
    """Write the picture. The file's ending names its format.

    Args:
        look: What to draw.
        photo: The square that the model saw, at any resolution, (3, H, W) in [0, 1].
        place: Row and column of what looks, as shares.
        title: Above the picture.
        path: The file.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib does not know the format.
    """
    height = max(STRIP_HEIGHT * len(look.strips), PHOTO_WIDTH) + 0.5
    figure = Figure(figsize=(WIDTH, height), facecolor="white", layout="constrained")
    figure.suptitle(title, **TITLE)
    left, right = figure.subfigures(1, 2, width_ratios=(PHOTO_WIDTH, WIDTH - PHOTO_WIDTH))
    pixels = photo.permute(1, 2, 0).numpy()
    _draw_photo(left.add_subplot(), look, pixels, place)
    strips = np.atleast_1d(right.subfigures(len(look.strips), 1))
    for part, strip in zip(strips, look.strips, strict=True):
        _draw_strip(part, strip, pixels)
    figure.savefig(path, dpi=DPI)


def _draw_photo(axes: Axes, look: Look, pixels: np.ndarray, place: tuple[float, float]) -> None:
    axes.imshow(pixels)
    height, width = pixels.shape[:2]
    if look.grid is not None:
        rows, columns = look.grid
        lines = dict(color="white", linewidth=0.7, alpha=0.7)
        for i in range(1, rows):
            axes.axhline(i * height / rows - 0.5, **lines)
        for j in range(1, columns):
            axes.axvline(j * width / columns - 0.5, **lines)
        x, y = place[1] * width - 0.5, place[0] * height - 0.5
        axes.plot(x, y, "s", markersize=7, color=INK, markeredgecolor="white")
    axes.set_title(look.caption, fontsize=9, color=INK)
    frame(axes, INK, 1)


def _draw_strip(figure: SubFigure, strip: Strip, pixels: np.ndarray) -> None:
    values = [panel.values for panel in strip.panels]
    norm = around(0, values)
    row = figure.subplots(1, len(strip.panels), squeeze=False)[0]
    for axes, panel in zip(row, strip.panels, strict=True):
        _draw_panel(axes, panel, pixels, norm)
    figure.suptitle(strip.title, **TITLE | dict(fontsize=10))
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=row, shrink=0.85, aspect=18, pad=0.01)
    bar.set_label(strip.label, fontsize=8, color=INK)
    bar.ax.set_ylim(*_range(norm, values))
    bar.ax.tick_params(labelsize=8)


def _range(norm: Normalize, values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The part of the scale that occurs, or all of it where nothing differs."""
    low, high = min(map(np.nanmin, values)), max(map(np.nanmax, values))
    return (low, high) if low < high else (norm.vmin, norm.vmax)


def _draw_panel(axes: Axes, panel: Panel, pixels: np.ndarray, norm: Normalize) -> None:
    """Colours of the values; over the photograph in grey, which shows through."""
    rows, columns = panel.values.shape
    colours = colormaps[DIVERGING](norm(panel.values))
    if panel.on_photo:
        height, width = pixels.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(0.35 + 0.65 * pixels.mean(axis=-1), cmap="gray", vmin=0, vmax=1, extent=extent)
        axes.imshow(colours, alpha=0.7 * np.isfinite(panel.values), extent=extent)
        if panel.marked is not None:
            i, j = np.nonzero(panel.marked)
            x, y = (j + 0.5) * width / columns - 0.5, (i + 0.5) * height / rows - 0.5
            axes.plot(x, y, "s", markersize=3, color=INK, markeredgecolor="white")
    else:
        axes.imshow(colours)
    axes.set_title(panel.title, fontsize=8, color=INK)
    frame(axes, INK, 0.5)
