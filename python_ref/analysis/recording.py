"""What a model does on the way: the calls of its operators, and the maps between its layers."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn

from python_ref.layers import DropPath
from python_ref.ops import REFERENCE, OpTable
from python_ref.ops.swap import swapped_ops

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_NORMS = (nn.LayerNorm, nn.BatchNorm2d)


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Attributes:
        module: name of the mixer that called it.
        op: name of the operator.
        arguments: by the names that the reference gives them.
        out: what it returned.
    """

    module: str
    op: str
    arguments: Mapping[str, object]
    out: object


@contextmanager
def recorded_calls(model: nn.Module, ops: Collection[str]) -> Iterator[list[Call]]:
    """A list to which every call of one of `ops` is added while the context is open.

    Raises:
        ValueError: there is no operator of that name.
    """
    known = [field.name for field in fields(OpTable)]
    if unknown := sorted(set(ops) - set(known)):
        raise ValueError(f"no operator is called {unknown[0]!r}; there are {', '.join(known)}")
    calls: list[Call] = []

    def run(module: str, op: str, function, *args, **kwargs):
        out = function(*args, **kwargs)
        bound = inspect.signature(getattr(REFERENCE, op)).bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(Call(module, op, bound.arguments, out))
        return out

    def recording(module: str, table: OpTable) -> OpTable:
        return replace(table, **{op: partial(run, module, op, getattr(table, op)) for op in ops})

    with swapped_ops(model, recording):
        yield calls


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Stem, residual blocks and downsamplings, whatever the family, by name, in order.

    A block is what holds a `DropPath`, the outermost one. What stands beside blocks is a layer too,
    but for norms and the classifier.
    """
    found: dict[str, nn.Module] = {}

    def holds_blocks(module: nn.Module) -> bool:
        inner = (m for child in module.children() for m in child.modules())
        return any(_is_block(m) for m in inner)

    def descend(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(child, _NORMS) or path == "head":
                continue
            whole = _is_block(child) or path == "stem"
            if whole or not (isinstance(child, _CONTAINERS) or holds_blocks(child)):
                found[path] = child
            else:
                descend(path, child)

    descend("", model)
    return found


def layer_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output (B, C, h, w) of every layer that writes a map, by the name of the layer.

    Args:
        model: a backbone.
        images: (B, C, H, W), square, so that rows can be told from channels.

    Raises:
        ValueError: images are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images must be square, got {tuple(images.shape)}")
    maps: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _args: tuple, out: object) -> None:
        if isinstance(out, Tensor) and (found := _as_map(out)) is not None:
            maps[name] = found

    hooks = [
        module.register_forward_hook(partial(keep, name)) for name, module in layers(model).items()
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _is_block(module: nn.Module) -> bool:
    return any(isinstance(child, DropPath) for child in module.children())


def _as_map(out: Tensor) -> Tensor | None:
    """A square map as (B, C, h, w), from NHWC, NCHW or tokens; None for anything else."""
    if out.ndim == 3:
        for first in (0, 1):  # with and without a class token
            side = isqrt(out.shape[1] - first)
            if side and side * side == out.shape[1] - first:
                return out[:, first:].mT.unflatten(-1, (side, side))
    if out.ndim != 4:
        return None
    if out.shape[2] == out.shape[3] and (out.shape[1] != out.shape[2] or out.stride(1) == 1):
        return out
    return out.permute(0, 3, 1, 2) if out.shape[1] == out.shape[2] else None
