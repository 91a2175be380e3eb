"""What the demo's pictures share."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

INK = "#222222"
DIVERGING = "RdBu_r"
TITLE = dict(x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
DPI = 110


def around(centre: float, values: Sequence[np.ndarray]) -> TwoSlopeNorm:
    """Colours symmetric about `centre`, up to the largest deviation; nan counts for nothing."""
    reach = max(np.nanmax(np.abs(value - centre)) for value in values)
    reach = max(float(reach), 1e-12)
    return TwoSlopeNorm(centre, centre - reach, centre + reach)


def frame(axes: Axes, colour: str, width: float = 2.5) -> None:
    """No ticks; a colour around."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)
