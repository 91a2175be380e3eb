"""The tables of the papers as data: what they print, and what the models here count.

A paper's module has ROWS; `rows()` has those of all papers. `hybrid-kernels count` prints them.
"""

import pkgutil
from importlib import import_module

from python_ref.published.row import Figures, Row, agrees, deviation

__all__ = ["Figures", "Row", "agrees", "deviation", "rows"]


def rows() -> dict[str, tuple[Row, ...]]:
    """Every published row, by the module that holds it."""
    names = (module.name for module in pkgutil.iter_modules(__path__) if module.name != "row")
    return {name: import_module(f"{__name__}.{name}").ROWS for name in sorted(names)}
