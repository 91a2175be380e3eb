"""Weights on disk, as safetensors."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_SHOWN = 5


def save_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Write parameters and buffers to a .safetensors file.

    A tensor that several modules share is written once, under the first of its names.
    """
    state, shared = model.state_dict(), _shared_names(model)
    kept = {name: tensor.contiguous() for name, tensor in state.items() if name not in shared}
    save_file(kept, os.fspath(path))


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Read parameters and buffers into a model, all or nothing.

    Args:
        model: any model; its device and dtypes stay.
        path: a .safetensors file, or a state dict written by torch.save.

    Raises:
        ValueError: the file is none of these, or does not fit: names and shapes that differ.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    found = _read(path)
    wanted = model.state_dict()
    for name, canonical in _shared_names(model).items():
        if name not in found and canonical in found:
            found[name] = found[canonical]
    problems = [
        _list("the file lacks", [name for name in wanted if name not in found]),
        _list("the model has no", [name for name in found if name not in wanted]),
        _list("shapes differ:", _different_shapes(found, wanted)),
    ]
    if any(problems):
        reasons = "; ".join(filter(None, problems))
        raise ValueError(
            f"{path} does not fit this {type(model).__name__}: {reasons}. Build the model with the "
            "name and options that the weights were trained with"
        )
    model.load_state_dict(found)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _shared_names(model: nn.Module) -> dict[str, str]:
    """Every further name of a shared tensor -> its first name, which is the one on disk."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: kept for names in by_tensor.values() for kept, *rest in [names] for name in rest}


def _different_shapes(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} here"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]


def _list(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{what} {', '.join(items[:_SHOWN])}{more}"
