"""Implementations that nobody here wrote: finding them, copying their weights, comparing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

# Patterns and what takes their place in a name, applied in this order.
Renames = Sequence[tuple[str, "str | Callable[[re.Match], str]"]]

TOLERANCE = 1e-10  # of the largest element, in float64; only the order of sums may differ


def load(name: str) -> ModuleType:
    """A module of an optional package, or a skip that says how to get it."""
    package = name.partition(".")[0]
    _declare_operators_of_torchvision()  # which the others import
    return pytest.importorskip(
        name, reason=f"{package} is not installed: pip install 'hybrid-kernels[compare]' brings it"
    )


@cache
def _declare_operators_of_torchvision() -> torch.library.Library | None:
    """Let torchvision be imported although its compiled library does not load.

    On a torch without CUDA the usual wheel, made for CUDA, lacks its libraries. The modules that
    are needed here do not call it, but importing them describes some of its operators to PyTorch,
    which must know them. They stay declared as long as what is returned.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return None
    try:
        for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
            torch.ops.load_library(library)
        return None
    except OSError:
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            declared.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return declared


def randomised(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, its weights and statistics far from zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    model.double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(1 + noise.abs())
            elif tensor.ndim == 1:
                tensor.add_(0.3 * noise)
            else:
                tensor.copy_(0.5 * noise / max(tensor[0].numel(), 1) ** 0.5)
    return model


def with_weights_of(
    theirs: Mapping[str, Tensor], ours: nn.Module, renames: Renames, dropped: str = r"(?!)"
) -> nn.Module:
    """`ours` in float64 and eval mode, with every weight and statistic of `theirs`.

    Args:
        theirs: a state dict.
        ours: must need exactly these, in equal numbers of elements.
        renames: from their names to ours.
        dropped: pattern of names that have no counterpart.
    """
    ours.double().eval()
    wanted = ours.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if re.search(dropped, name):
            continue
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        # A 1x1 convolution is a linear layer with two more axes.
        state[name] = tensor.reshape(wanted[name].shape) if name in wanted else tensor
    ours.load_state_dict(state)
    return ours


def example(*shape: int) -> Tensor:
    """Normal random numbers in float64, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def check_logits(
    record: Callable[[str, object], None],
    ours: nn.Module,
    theirs: Callable[[Tensor], Tensor],
    size: tuple[int, int],
) -> None:
    """Equal logits of two images; see `check_equal`."""
    x = example(2, 3, *size)
    with torch.no_grad():
        check_equal(record, [ours(x)], [theirs(x)])


def check_equal(
    record: Callable[[str, object], None], ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> None:
    """Tensor by tensor equal to rounding, in float64.

    `record` (record_property) takes the largest difference, for the summary of the run.
    """
    differences = []
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype == torch.float64
        assert our.shape == their.shape
        size = their.abs().max().item()
        assert 0 < size < float("inf")
        differences.append((our - their).abs().max().item() / size)
    record("difference", f"{max(differences):.1e}")
    assert max(differences) <= TOLERANCE
