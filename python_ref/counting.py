"""Parameters and multiply-accumulates of a model, in the conventions of the papers.

A model runs once on meta tensors, without data, and everything countable that it calls is tallied
by kind. A convention is a weight for each kind: papers disagree about what costs anything, not
about how often it happens.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from python_ref.ops import OpTable
from python_ref.ops.swap import swapped_ops

MACS = {"conv": 1, "linear": 1, "attention": 1}
CONVENTIONS: dict[str, dict[str, float]] = {
    # What PyTorch's FlopCounterMode counts, halved.
    "macs": MACS,
    # Counters that hook modules do not see products of two activations.
    "modules": {"conv": 1, "linear": 1},
    "fvcore": MACS | {"batch_norm": 2, "batch_norm_training": 5, "layer_norm": 5, "sample": 4},
    "mmcv": MACS | {"bias": 1, "batch_norm": 2, "layer_norm": 2, "relu": 1},
}


@dataclass(frozen=True)
class Count:
    """What one forward pass of a model takes.

    Attributes:
        parameters_of: trainable numbers of every module with all that it contains; running
            statistics are none. The model itself has the name "".
        tallies: for every module that calls something itself, how much of each kind. The kinds:
            multiply-accumulates of "conv", "linear" and "attention" (products of two activations);
            elements written by "bias" additions, "batch_norm", "batch_norm_training", "layer_norm"
            and "relu" (also ReLU6); elements read by means ("pool"); elements written by "sample".
    """

    parameters_of: Mapping[str, int]
    tallies: Mapping[str, Counter]

    @property
    def parameters(self) -> int:
        return self.parameters_of[""]

    def total(self, convention: str | Mapping[str, float] = "macs", under: str = "") -> float:
        """The weighted sum over all modules, or over the module `under` and what it contains.

        Raises:
            ValueError: no convention has that name.
        """
        weights = _weights(convention)
        return sum(
            weights.get(kind, 0) * number
            for name, tally in self.tallies.items()
            if f"{name}.".startswith(f"{under}." if under else "")
            for kind, number in tally.items()
        )

    def by_module(self, convention: str | Mapping[str, float] = "macs", depth: int = 2) -> dict:
        """Totals of the modules `depth` names deep, in the order in which they run."""
        totals: dict[str, float] = {}
        weights = _weights(convention)
        for name, tally in self.tallies.items():
            group = ".".join(name.split(".")[:depth])
            cost = sum(weights.get(kind, 0) * number for kind, number in tally.items())
            totals[group] = totals.get(group, 0) + cost
        return {name: total for name, total in totals.items() if total}


def count(model: nn.Module, *inputs: Tensor) -> Count:
    """Count one forward pass of a model whose parameters and inputs are on the meta device.

    The mode of the model decides about the kind of its batch norms.
    """
    counter = _Counter()
    swap = partial(_counted_ops, counter)
    with swapped_ops(model, swap), _module_names(model, counter), counter:
        model(*inputs)
    sizes = {name: _size(module) for name, module in model.named_modules()}
    return Count(sizes, counter.tallies)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _weights(convention: str | Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(convention, str):
        return convention
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return CONVENTIONS[convention]


class _Counter(TorchFunctionMode):
    """Sees the functions that a model calls, not what those call in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = [""]
        self.tallies: dict[str, Counter] = {}

    def add(self, tally: Mapping[str, int]) -> None:
        self.tallies.setdefault(self.stack[-1], Counter()).update(tally)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in _TALLIES:
            self.add(_TALLIES[func](out, *args, **(kwargs or {})))
        return out


def _linear(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict:
    return {"linear": out.numel() * weight.shape[1]} | _bias(out, bias)


def _conv(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *_, **__) -> dict:
    return {"conv": out.numel() * math.prod(weight.shape[1:])} | _bias(out, bias)


def _conv_transpose(out: Tensor, x: Tensor, weight: Tensor, bias=None, *_, **__) -> dict:
    return {"conv": x.numel() * math.prod(weight.shape[1:])} | _bias(out, bias)


def _bias(out: Tensor, bias: Tensor | None) -> dict:
    return {} if bias is None else {"bias": out.numel()}


def _matmul(out: Tensor, a: Tensor, b: Tensor) -> dict:
    return {_product_kind(a, b): out.numel() * a.shape[-1]}


def _baddbmm(out: Tensor, added: Tensor, a: Tensor, b: Tensor, **_) -> dict:
    return _matmul(out, a, b)


def _einsum(out: Tensor, equation: str, *operands: Tensor) -> dict:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2:
        return {}
    sizes = {}
    for term, operand in zip(terms, operands, strict=True):
        sizes.update(zip(term, operand.shape, strict=True))
    return {_product_kind(*operands): math.prod(sizes.values())}


def _product_kind(*operands: Tensor) -> str:
    """A product with a parameter, or with a view of one, is a linear layer by another name."""
    owners = (t if t._base is None else t._base for t in operands)
    return "linear" if any(isinstance(t, nn.Parameter) for t in owners) else "attention"


def _batch_norm(out: Tensor, x, mean, variance, weight=None, bias=None, training=False, *_, **__):
    return {"batch_norm_training" if training else "batch_norm": out.numel()}


def _elements_written(kind: str) -> Callable:
    return lambda out, *_, **__: {kind: out.numel()}


def _elements_read(kind: str) -> Callable:
    return lambda out, x, *_, **__: {kind: x.numel()}


_TALLIES: dict[Callable, Callable] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv_transpose2d: _conv_transpose,
    torch.einsum: _einsum,
    torch.baddbmm: _baddbmm,
    F.batch_norm: _batch_norm,
    F.layer_norm: _elements_written("layer_norm"),
    F.grid_sample: _elements_written("sample"),
}
_TALLIES |= dict.fromkeys(
    (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm), _matmul
)
_TALLIES |= dict.fromkeys(
    (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu6, F.hardtanh),
    _elements_written("relu"),
)
_TALLIES |= dict.fromkeys((torch.mean, Tensor.mean, F.adaptive_avg_pool2d), _elements_read("pool"))


def _gated_fuse(out: Tensor, x: Tensor, m: list, weight: Tensor | None, *_, **__) -> dict:
    """The gates are a depthwise 1x1 convolution from x to every branch."""
    return {"conv": 0 if weight is None else weight.shape[0] * x.numel()}


def _single_query_attention(out: Tensor, query, k, v, scale, exclude=None) -> dict:
    """Tokens that are masked cost nothing."""
    number = k.shape[1] - (0 if exclude is None else exclude.shape[1])
    queries = out.shape[:2].numel() * out.shape[2]
    return {"attention": queries * number * (k.shape[-1] + v.shape[-1])}


def _atrous_attention(out: Tensor, qkv, bias, dilations, window: int, scale) -> dict:
    """Every pixel attends to a window; what surrounds a map that does not tile is not counted."""
    return {"attention": 2 * out.numel() * window**2}


# Ops of the reference that are not written with the products that they stand for.
OP_TALLIES: dict[str, Callable] = {
    "atrous_attention": _atrous_attention,
    "bilinear_sample": _elements_written("sample"),
    "context_topk": lambda *_, **__: {},  # its means choose tokens; nobody counts a choice
    "gated_fuse": _gated_fuse,
    "single_query_attention": _single_query_attention,
}


def _counted_ops(counter: _Counter, _: str, table: OpTable) -> OpTable:
    """The table with ops named in OP_TALLIES tallied by formula instead of by what they call."""

    def counted(op: Callable, formula: Callable) -> Callable:
        def run(*args, **kwargs):
            with torch._C.DisableTorchFunction():
                out = op(*args, **kwargs)
            counter.add(formula(out, *args, **kwargs))
            return out

        return run

    return replace(table, **{op: counted(getattr(table, op), f) for op, f in OP_TALLIES.items()})


@contextmanager
def _module_names(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Keep the name of the running module on top of the counter's stack."""

    def leave(*_) -> None:
        counter.stack.pop()

    handles = []
    for name, module in model.named_modules():
        enter = partial(lambda name, *_: counter.stack.append(name), name)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
