"""Picture of ACC-ViT: where a pixel looks in each dilated branch, how branches are mixed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from python_ref.layers import AtrousAttention

from .style import DIVERGING, DPI, INK, TITLE, around, frame

COLOURS = ("#ffb000", "#fe6100", "#dc267f", "#648fff", "#785ef0", "#00a9a5", "#8ab17d", "#bc6c25")


@dataclass(frozen=True)
class Branch:
    """One branch seen from one pixel of the map."""

    dilation: int
    rows: np.ndarray  # (P,) map rows of the pixel's window, some perhaps beyond the map
    columns: np.ndarray
    weights: np.ndarray  # (P, P) attention, mean over heads; nan outside the map
    gate: np.ndarray  # (H, W) share of this branch in the mixture, mean over channels


@dataclass(frozen=True)
class Explanation:
    """What the picture shows."""

    photo: np.ndarray  # (height, width, 3)
    stride: int  # of the map, in pixels of the photograph
    pixel: tuple[int, int]  # in the map
    note: str  # on the weights, for the titles
    branches: list[Branch]


def explain(
    model: nn.Module, images: Tensor, photo: Tensor, place: tuple[float, float], note: str = ""
) -> Explanation:
    """Look into the first attention block of the model at a place of the photograph.

    Args:
        model: Holds at least one ``AtrousAttention``.
        images: What the model sees, (1, 3, height, width).
        photo: The same photograph in [0, 1], (3, height, width).
        place: Row and column, as shares of the photograph's height and width, in [0, 1).
        note: What to say of the weights.
    """
    block = next(m for m in model.modules() if isinstance(m, AtrousAttention))
    seen: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
        hook.remove()
        x = seen[0]
        qkv = block.ops.branch_project_in(x, block.norms, block.qkvs)
        qkv = qkv.unflatten(-1, (len(block.dilations), 3, block.heads, -1))
        arguments = (qkv, block.bias, list(block.dilations), block.window, block.scale)
        _, lse = torch.ops.hybrid.atrous_attention(*arguments)
        gates = _gates(block, x)
    stride = round(photo.shape[1] / x.shape[1])
    i, j = (int(share * n) for share, n in zip(place, x.shape[1:3], strict=True))
    branches = []
    for k, dilation in enumerate(block.dilations):
        weights, rows, columns = _attention_of_pixel(*arguments, lse, k, i, j)
        gate = gates[k].cpu().numpy()
        branches.append(Branch(dilation, rows, columns, weights, gate))
    return Explanation(photo.permute(1, 2, 0).numpy(), stride, (i, j), note, branches)


def _gates(block: AtrousAttention, x: Tensor) -> Tensor:
    """Weights of the branches of the first image, mean over channels: (n, H, W)."""
    n = len(block.dilations)
    if block.gate is None:
        return x.new_full((n, *x.shape[1:3]), 1 / n)
    logits = x[0, None] * block.gate.weight[:, None, None] + block.gate.bias[:, None, None]
    return logits.softmax(dim=0).mean(dim=-1)


def _attention_of_pixel(
    qkv: Tensor,
    bias: Tensor,
    dilations: list[int],
    window: int,
    scale: float,
    lse: Tensor,
    branch: int,
    i: int,
    j: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights exp(score - lse) of pixel (i, j) over its window, and the window's rows, columns."""
    dilation = dilations[branch]
    rows, columns = (_window_of(position, window, dilation) for position in (i, j))
    query = qkv[0, i, j, branch, 0]  # (h, e)
    slots_i, slots_j = (i // dilation) % window, (j // dilation) % window
    weights = np.full((window, window), np.nan)
    for a, row in enumerate(rows):
        for b, column in enumerate(columns):
            if row >= qkv.shape[1] or column >= qkv.shape[2]:
                continue
            key = qkv[0, row, column, branch, 1]
            offset = (slots_i - a + window - 1) * (2 * window - 1) + slots_j - b + window - 1
            score = scale * (query * key).sum(dim=-1) + bias[branch, offset]
            weights[a, b] = (score - lse[0, i, j, branch]).exp().mean().item()
    return weights, rows, columns


def _window_of(position: int, window: int, dilation: int) -> np.ndarray:
    """Positions of the slots, along one axis, of the window that holds `position`."""
    first = position // (window * dilation) * window * dilation + position % dilation
    return first + dilation * np.arange(window)


def draw(explanation: Explanation, path: Path) -> None:
    """Write the picture. The file's ending names its format.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib does not know the format.
    """
    height, width = explanation.photo.shape[:2]
    n = len(explanation.branches)
    top, bottom = 8.2 * height / width, 13 / n * height / width
    figure = Figure(figsize=(13, top + bottom + 1.6), facecolor="white", layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(top + 0.8, bottom + 0.8), hspace=0.02)
    left, right = upper.subfigures(1, 2, width_ratios=(8.2, 4.8))
    left.suptitle("Windows of one pixel of the first stage, by dilation", **TITLE)
    _draw_windows(left.add_subplot(), explanation)
    _draw_attention(right, explanation)
    _draw_gates(lower, explanation)
    figure.savefig(path, dpi=DPI)


def _draw_windows(axes: Axes, explanation: Explanation) -> None:
    """The photograph, and on it the slots of the window that holds the pixel, branch by branch."""
    s = explanation.stride
    height, width = explanation.photo.shape[:2]
    axes.imshow(explanation.photo)
    for k, branch in reversed(list(enumerate(explanation.branches))):
        centres_y, centres_x = ((x + 0.5) * s - 0.5 for x in (branch.rows, branch.columns))
        x, y = np.meshgrid(centres_x, centres_y)
        axes.scatter(
            x, y, s=5 + 5 * k, color=COLOURS[k], edgecolor="white", linewidth=0.4, zorder=3
        )
        corner = (branch.columns[0] * s - 0.5, branch.rows[0] * s - 0.5)
        sides = (np.ptp(branch.columns) + 1) * s, (np.ptp(branch.rows) + 1) * s
        label = f"dilation {branch.dilation}"
        axes.add_patch(
            Rectangle(corner, *sides, fill=False, edgecolor=COLOURS[k], linewidth=1.8, label=label)
        )
    y, x = ((p + 0.5) * s - 0.5 for p in explanation.pixel)
    axes.plot(x, y, "s", markersize=7, color=INK, markeredgecolor="white", label="the pixel")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", framealpha=0.9, fontsize=9)
    axes.axis("off")


def _draw_attention(figure: SubFigure, explanation: Explanation) -> None:
    """Per branch the window's part of the photograph under tiles coloured by attention."""
    branches = explanation.branches
    relative = [b.weights * np.isfinite(b.weights).sum() for b in branches]
    norm = around(1, relative)
    columns = min(2, len(branches))
    grid = figure.subplots(-(-len(branches) // columns), columns, squeeze=False)
    for k, (axes, branch) in enumerate(zip(grid.flat, branches, strict=False)):
        _draw_window(axes, explanation, branch, relative[k], norm)
        axes.set_title(f"dilation {branch.dilation}", fontsize=9, color=INK)
        frame(axes, COLOURS[k])
    for axes in grid.flat[len(branches) :]:
        axes.axis("off")
    figure.suptitle(f"Its attention, mean over heads{explanation.note}", **TITLE)
    bar = figure.colorbar(
        ScalarMappable(norm, DIVERGING), ax=grid, location="bottom", shrink=0.8, aspect=40, pad=0.02
    )
    bar.set_label("times the uniform weight", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8)


def _draw_window(
    axes: Axes,
    explanation: Explanation,
    branch: Branch,
    relative: np.ndarray,
    norm: TwoSlopeNorm,
) -> None:
    s, d = explanation.stride, branch.dilation
    grey = explanation.photo.mean(axis=-1)
    axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
    tile = 0.62 * d * s
    for a, row in enumerate(branch.rows):
        for b, column in enumerate(branch.columns):
            if np.isnan(relative[a, b]):
                continue
            corner = (column + 0.5) * s - 0.5 - tile / 2, (row + 0.5) * s - 0.5 - tile / 2
            is_pixel = (row, column) == explanation.pixel
            axes.add_patch(
                Rectangle(
                    corner,
                    tile,
                    tile,
                    facecolor=ScalarMappable(norm, DIVERGING).to_rgba(relative[a, b]),
                    edgecolor=INK if is_pixel else "white",
                    linewidth=2 if is_pixel else 0.4,
                    zorder=3 if is_pixel else 2,
                )
            )
    margin = d * s / 2
    for limits, slots in ((axes.set_xlim, branch.columns), (axes.set_ylim, branch.rows)):
        low, high = (slots[0] + 0.5) * s - margin - 0.5, (slots[-1] + 0.5) * s + margin - 0.5
        limits((low, high) if slots is branch.columns else (high, low))


def _draw_gates(figure: SubFigure, explanation: Explanation) -> None:
    """Per branch its share in the mixture, over the whole map."""
    branches = explanation.branches
    n = len(branches)
    norm = around(1 / n, [branch.gate for branch in branches])
    row = figure.subplots(1, n, squeeze=False)[0]
    for k, (axes, branch) in enumerate(zip(row, branches, strict=True)):
        axes.imshow(branch.gate, cmap=DIVERGING, norm=norm)
        axes.plot(*explanation.pixel[::-1], "s", markersize=5, color="none", markeredgecolor=INK)
        axes.set_title(f"dilation {branch.dilation}", fontsize=9, color=INK)
        frame(axes, COLOURS[k])
    figure.suptitle(
        f"Share of each branch in the mixture (gates), mean over channels{explanation.note}",
        **TITLE,
    )
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), ax=row, shrink=0.85, aspect=18, pad=0.01)
    bar.ax.tick_params(labelsize=8)
