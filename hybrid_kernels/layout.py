"""Copies of activations that change nothing but their layout, counted in one forward pass.

They are what is left to win by operators that read any strides and write what the next one reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from python_ref.analysis.recording import layers

_COPIES = ("clone", "contiguous", "copy_", "_to_copy")


@dataclass(frozen=True)
class LayoutCopy:
    """One copy of an activation.

    Attributes:
        layer: name of the stem, block or downsampling in which it happened; "" beside them.
        op: the operator that copied.
        shape: of the activation.
        bytes: of the activation.
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    bytes: int


def layout_copies(model: nn.Module, images: Tensor) -> list[LayoutCopy]:
    """Every copy of an activation to another layout that a forward pass of the model makes.

    An activation is whatever follows from the images. Conversions to another dtype, concatenations
    and copies of parameters do not count. Copies that a fused op makes of its own arguments do;
    those inside PyTorch's own kernels cannot be seen.

    Args:
        model: Runs in the mode, training or evaluation, that it is in.
        images: (B, C, H, W).
    """
    watch = _Watch(images)
    with torch.no_grad(), _told_of_layers(model, watch), watch:
        model(images)
    return watch.copies


class _Watch(TorchDispatchMode):
    """Follows what depends on the images, by the memory in which it lies, and notes copies."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.layer = ""
        self.copies: list[LayoutCopy] = []
        self._activations = {_memory(images)}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = self._call(func, args, kwargs or {})
        inputs = map(_memory, _tensors((args, kwargs)))
        if self._activations.intersection(inputs):
            self._activations.update(map(_memory, _tensors(out)))
            name = func._schema.name.removeprefix("aten::")
            if name in _COPIES and _is_layout_copy(name, args, out):
                size = out.numel() * out.element_size()
                self.copies.append(LayoutCopy(self.layer, name, tuple(out.shape), size))
        return out

    def _call(self, func, args, kwargs):
        if func.namespace != "hybrid":
            return func(*args, **kwargs)
        # Straight to the kernel, with the watch on: a fused op may copy its arguments.
        device = _tensors(args)[0].device.type
        key = getattr(torch._C.DispatchKey, torch._C._dispatch_key_for_device(device))
        with self:
            return func.redispatch(torch._C.DispatchKeySet(key), *args, **kwargs)


def _is_layout_copy(name: str, args: tuple, out: Tensor) -> bool:
    source = args[1] if name == "copy_" else args[0]
    return source.dtype == out.dtype and _memory(source) != _memory(out)


def _memory(tensor: Tensor) -> StorageWeakRef:
    """Identity of a tensor's memory, which no other memory takes while the reference is held."""
    return StorageWeakRef(tensor.untyped_storage())


def _tensors(values: object) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


@contextmanager
def _told_of_layers(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Keep `watch.layer` at the name of the layer that runs."""

    def name(layer: str, *_) -> None:
        watch.layer = layer

    hooks = []
    for layer, module in layers(model).items():
        hooks.append(module.register_forward_pre_hook(partial(name, layer)))
        hooks.append(module.register_forward_hook(partial(name, "")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
