"""One line of a published table, and what this project counts for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

import torch

from python_ref.counting import Count, count
from python_ref.models import create_model


@dataclass(frozen=True)
class Row:
    """A model as a paper's table has it.

    Attributes:
        table: where it stands, for example "Table 2".
        model: name for `create_model`.
        options: of the family.
        head: name for `create_dense`, if the table is one of dense prediction.
        head_options: of the head.
        size: rows and columns of the image.
        label: what the paper calls it, if the name and options do not say it.
        paper_params: millions, as printed.
        paper_macs: billions, as printed.
        params: exact number of parameters, where it has been derived.
        macs: exact number of multiply-accumulates in the convention "macs", likewise.
        convention: how the paper counts: a name or weights, see `python_ref.counting`.
        spent: operations of the paper's model that ours does without, on padding for example.
        over: the row that paper_macs is the increase over; parameters are those of the whole model.
        training: the paper counted a model in training mode.
        under: only the modules with this last name are counted, for example "mixer"; "" is the
            whole model.
        params_within, macs_within: largest relative deviation from the paper's figure; None means
            equal after rounding to the printed digits.
        checked: False for a figure that no reading of the paper reproduces; `note` says why.
        note: what a reader should know.
    """

    table: str
    model: str
    options: Mapping[str, object] = field(default_factory=dict)
    head: str | None = None
    head_options: Mapping[str, object] = field(default_factory=dict)
    size: tuple[int, int] = (224, 224)
    label: str = ""
    paper_params: str | None = None
    paper_macs: str | None = None
    params: int | None = None
    macs: int | None = None
    convention: str | Mapping[str, float] = "macs"
    spent: int = 0
    over: "Row | None" = None
    training: bool = False
    under: str = ""
    params_within: float | None = None
    macs_within: float | None = None
    checked: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        """The label, or the model with its options."""
        if self.label:
            return self.label
        options = (f"{key}={_short(value)}" for key, value in self.options.items())
        name = f"{self.model} with {self.head}" if self.head else self.model
        return ", ".join([name, *options])

    def build(self) -> torch.nn.Module:
        """The model of this row, on the device that is the default."""
        if self.head is None:
            return create_model(self.model, **self.options)
        from python_ref.dense import create_dense

        backbone = create_model(self.model, features_only=True, **self.options)
        return create_dense(self.head, backbone, **self.head_options)

    def count(self) -> "Figures":
        """Parameters, MACs, and operations in the paper's convention."""
        counted = _count(self)
        names = [n for n in counted.parameters_of if n.rpartition(".")[2] == self.under]
        parameters = sum(counted.parameters_of[name] for name in names)
        macs = int(sum(counted.total("macs", name) for name in names))
        operations = sum(counted.total(self.convention, name) for name in names) + self.spent
        if self.over is not None:
            base = self.over.count()
            macs, operations = macs - base.macs, operations - base.operations
        return Figures(parameters, macs, operations)


@dataclass(frozen=True)
class Figures:
    """What was counted for a row."""

    parameters: int
    macs: int
    operations: float


def _short(option: object) -> str:
    """(1, 2) as "1-2", the rest as it prints."""
    return "-".join(map(str, option)) if isinstance(option, tuple) else str(option)


def deviation(printed: str, ours: float) -> float:
    """Relative difference between a printed figure and ours in the same unit."""
    return ours / float(printed) - 1


def agrees(printed: str, ours: float, within: float | None) -> bool:
    """Whether ours rounds to the printed figure, or is near enough if `within` is given."""
    if within is not None:
        return abs(deviation(printed, ours)) <= within
    half = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent) / 2
    return abs(Decimal(ours) - Decimal(printed)) <= half * Decimal("1.0000001")


_counted: dict[tuple, Count] = {}


def _count(row: Row) -> Count:
    """Count a row's model once, however many lines of a table look at it."""
    key = (row.model, repr(row.options), row.head, repr(row.head_options), row.size, row.training)
    if key not in _counted:
        with torch.device("meta"):
            model = row.build().train(row.training)
            _counted[key] = count(model, torch.empty(1, 3, *row.size))
    return _counted[key]
