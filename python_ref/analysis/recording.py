"""What a model does on the way: the calls of its operators, and the maps between its layers."""

import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn

from python_ref.layers import DropPath, PositionConv
from python_ref.ops import REFERENCE, OpTable
from python_ref.ops.swap import swapped_ops

_CONTAINERS = (nn.Sequential, nn.ModuleList)
# What stands beside the layers of a stage and is none itself.
_ASIDE = (nn.LayerNorm, nn.BatchNorm2d, nn.Identity, PositionConv)


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
    but for norms, positional encodings and the classifier.
    """
    found: dict[str, nn.Module] = {}

    def holds_blocks(module: nn.Module) -> bool:
        inner = (m for child in module.children() for m in child.modules())
        return any(_is_block(m) for m in inner)

    def descend(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(child, _ASIDE) or path == "head":
                continue
            whole = _is_block(child) or path == "stem"
            if whole or not (isinstance(child, _CONTAINERS) or holds_blocks(child)):
                found[path] = child
            else:
                descend(path, child)

    descend("", model)
    return found


def run_layers(model: nn.Module, images: Tensor) -> tuple[object, dict[str, Tensor]]:
    """Result of the model, and the tensors that its layers returned, in the order of time."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _args: tuple, out: object) -> None:
        if isinstance(out, Tensor):
            outputs[name] = out

    hooks = [
        module.register_forward_hook(partial(keep, name)) for name, module in layers(model).items()
    ]
    try:
        return model(images), outputs
    finally:
        for hook in hooks:
            hook.remove()


def layer_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output (B, C', H', W') of every layer that returns a map, by the name of the layer.

    Args:
        model: a backbone.
        images: (B, C, H, W).
    """
    with torch.no_grad():
        _, outputs = run_layers(model, images)
    maps = {name: as_map(out, images.shape[2:]) for name, out in outputs.items()}
    return {name: found for name, found in maps.items() if found is not None}


def as_map(out: Tensor, size: Sequence[int]) -> Tensor | None:
    """A map (B, C, H', W') of an image of this size, from NHWC, NCHW or tokens; else None.

    Where the shape leaves it open, as in 32 x 32 x 32, channels lie next to each other in memory.
    """
    if out.ndim == 3:
        grid = grid_of(out.shape[1:2], size)
        return None if grid is None else out[:, grid[2] :].mT.unflatten(-1, grid[:2])
    if out.ndim != 4:
        return None
    channels_last, channels_first = (
        grid_of(out.shape[first : first + 2], size) is not None for first in (1, 2)
    )
    if channels_first and not (channels_last and out.stride(1) > 1):
        return out
    return out.permute(0, 3, 1, 2) if channels_last else None


def grid_of(shape: Sequence[int], size: Sequence[int]) -> tuple[int, int, int] | None:
    """Rows, columns and class tokens in front, of a map (H', W') or of tokens (N,) in a row.

    None if they are not the grid of an image of this size at any stride, rounded up or down.
    """
    options = [(shape[0], shape[1], 0)] if len(shape) == 2 else _factors(shape[0])
    return next((grid for grid in options if _is_strided(grid[:2], size)), None)


def _is_strided(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether one stride s gives n = ceil(N / s) on both sides, or n = floor(N / s) on both."""
    if min(grid) < 1:
        return False
    sides = list(zip(size, grid, strict=True))
    up = [(n / g, n / (g - 1) if g > 1 else math.inf) for n, g in sides]
    down = [(n / (g + 1), n / g) for n, g in sides]
    return any(
        max(low for low, _ in strides) < min(high for _, high in strides) for strides in (up, down)
    )


def _factors(tokens: int) -> list[tuple[int, int, int]]:
    """All grids of this many tokens, with and without a class token."""
    return [
        (rows, count // rows, first)
        for first, count in ((0, tokens), (1, tokens - 1))
        for rows in range(1, count + 1)
        if count % rows == 0
    ]


def _is_block(module: nn.Module) -> bool:
    return any(isinstance(child, DropPath) for child in module.children())
