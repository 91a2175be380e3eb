"""Sample inputs of every op, declared once for tests, benchmarks and ``hybrid-kernels check``.

A module here bears its op's name and defines ``DECLARATION``; ``_maps`` helps them.
"""

import enum
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Maker:
    """Makes the tensors of a sample: the same values for every dtype, device and run."""

    def __init__(self, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0):
        self.dtype = dtype
        self.device = torch.device(device)
        self.parameter_dtype = torch.promote_types(dtype, torch.float32)
        self._generator = torch.Generator().manual_seed(seed)

    def data(self, *shape: int) -> Tensor:
        """Normal values in the data's dtype."""
        return self._normal(shape).to(self.device, self.dtype)

    def parameter(self, *shape: int) -> Tensor:
        """Normal values in the dtype that parameters have beside such data."""
        return self._normal(shape).to(self.device, self.parameter_dtype)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape)
        return torch.randn(shape, generator=self._generator, dtype=torch.float32)


class Cost(enum.IntEnum):
    """What a sample costs, and so where it runs: every place takes all up to some cost.

    ``SMALL`` ones run everywhere, also where one call becomes many: finite differences, opcheck.
    ``MEDIUM`` ones are fit for interpreters and for sanitizers, where a window takes a tenth of a
    second, ``LARGE`` ones for the emulator, where it takes a millisecond, ``HUGE`` ones for
    compiled kernels only.
    """

    SMALL = 0
    MEDIUM = 1
    LARGE = 2
    HUGE = 3


@dataclass(frozen=True)
class Sample:
    """Arguments of ``torch.ops.hybrid.<op>``."""

    name: str
    build: Callable[[Maker], tuple[Any, ...]]
    cost: Cost = Cost.MEDIUM


@dataclass(frozen=True)
class BadCall:
    """Arguments that must be refused, and a regular expression that the message must match."""

    name: str
    build: Callable[[Maker], tuple[Any, ...]]
    message: str


def changed_calls(
    names: Sequence[str], build: Callable[[Maker], tuple[Any, ...]]
) -> Callable[..., BadCall]:
    """``bad(name, message, **change)``, which spoils arguments of a call that is right.

    ``build`` makes that call's arguments, in the order of ``names``; ``change`` holds, by name,
    what makes a bad argument of the good one.
    """

    def bad(name: str, message: str, **change: Callable[[Any], Any]) -> BadCall:
        def spoilt(make: Maker) -> tuple[Any, ...]:
            arguments = dict(zip(names, build(make), strict=True))
            changed = {key: new(arguments[key]) for key, new in change.items()}
            return tuple((arguments | changed).values())

        return BadCall(name, spoilt, message)

    return bad


@dataclass(frozen=True)
class Declaration:
    """What the harness must know of an op.

    ``two_sizes`` names two samples that differ in sizes only: one compiled graph must serve both.
    (Within each, give what varies and what is fixed different sizes, or dynamo unites them.)
    ``autocast`` names the arguments that autocast lowers. The first ``differentiable`` outputs
    carry gradients; the others are statistics.
    """

    op: str
    samples: tuple[Sample, ...]
    bad_calls: tuple[BadCall, ...]
    two_sizes: tuple[str, str]
    autocast: tuple[str, ...] = ()
    has_second_derivative: bool = False
    differentiable: int = 1
    by_name: dict[str, Sample] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "by_name", {sample.name: sample for sample in self.samples})


def declarations() -> dict[str, Declaration]:
    """All declarations, by op."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    names = sorted(name for name in modules if not name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}").DECLARATION for name in names}
