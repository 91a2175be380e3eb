"""Another table of operators in a model for a while: to count, or to look."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from python_ref.ops import OpTable


@contextmanager
def swapped_ops(model: nn.Module, swap: Callable[[str, OpTable], OpTable]) -> Iterator[None]:
    """Give every mixer the table swap(name of the mixer, its own table); put it back at the end."""
    mixers = [
        (name, module, module.ops)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "ops", None), OpTable)
    ]
    try:
        for name, module, table in mixers:
            module.ops = swap(name, table)
        yield
    finally:
        for _, module, table in mixers:
            module.ops = table
