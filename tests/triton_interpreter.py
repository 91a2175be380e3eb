"""Triton's interpreter made fit for tests: bfloat16 that is right, memory that is guarded.

The interpreter (3.6 and 3.7) keeps a bfloat16 value as its 16 raw bits and computes with those bits
as if they were integers, without a word; its conversions truncate. `repair_bfloat16` makes every
operation widen to float32 and round to nearest even, as the GPU does.

It also loads and stores at whatever address a kernel computes, so that a stray store corrupts the
heap unnoticed. `guard_memory` refuses, before anything is touched, every address outside the
storages of the tensors that the kernel was given.

And it replaces the functions of triton.language anew at every call of a @jit function inside a
kernel. `patch_once_a_launch` does so at the first call only, which saves a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch.utils import _pytree as pytree
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    ReduceScanOpInterface,
    TensorHandle,
)

# ---- bfloat16 ----------------------------------------------------------------------------------


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as raw uint16 -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 as raw uint16, to nearest even; a NaN stays a NaN."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    quiet_nan = bits | np.uint32(0x400000)
    return (np.where(np.isnan(values), quiet_nan, rounded) >> 16).astype(np.uint16)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widened(value: Any) -> Any:
    return TensorHandle(widen(value.data), tl.float32) if _is_bfloat16(value) else value


def _in_float32(operation: Callable) -> Callable:
    """An operation of the interpreter, computed in float32 wherever it has a bfloat16 operand."""

    def repaired(self, *operands):
        result = operation(self, *map(_widened, operands))
        if not any(map(_is_bfloat16, operands)) or result.data.dtype != np.float32:
            return result  # comparisons stay boolean
        return TensorHandle(narrow(result.data), tl.bfloat16)

    return repaired


def _dot(operation: Callable) -> Callable:
    """Products of bfloat16 matrices; the accumulator is float32 already."""

    def repaired(self, a, b, accumulator, *options):
        return operation(self, _widened(a), _widened(b), accumulator, *options)

    return repaired


def _conversion(operation: Callable) -> Callable:
    """Conversions from and to bfloat16, by way of float32."""

    def repaired(self, value, target, *rounding):
        if target.scalar != tl.bfloat16:
            if not _is_bfloat16(value):
                return operation(self, value, target, *rounding)
            return InterpreterBuilder.cast_impl(self, _widened(value), target)
        if _is_bfloat16(value):
            return value
        return TensorHandle(narrow(value.data.astype(np.float32)), tl.bfloat16)

    return repaired


def _reduction(operation: Callable) -> Callable:
    """Reductions and scans, in float32 and rounded once."""

    def repaired(self, operands):
        tensors = operands if isinstance(operands, tuple) else (operands,)
        narrow_type = tensors[0].dtype == tl.bfloat16
        wide = tuple(_cast(t, tl.float32) if t.dtype == tl.bfloat16 else t for t in tensors)
        results = operation(self, wide)
        if narrow_type:
            results = (_cast(results[0], tl.bfloat16), *results[1:])
        return results if isinstance(operands, tuple) else results[0]

    return repaired


def _cast(tensor: tl.tensor, dtype: tl.dtype) -> tl.tensor:
    data = narrow(tensor.handle.data) if dtype == tl.bfloat16 else widen(tensor.handle.data)
    is_block = tensor.type.is_block()
    return tl.tensor(
        TensorHandle(data, dtype), tl.block_type(dtype, tensor.type.shape) if is_block else dtype
    )


def repair_bfloat16() -> None:
    """Replace the interpreter's operations by right ones, once for the process."""
    if hasattr(InterpreterBuilder, "get_bf16"):
        return
    builder = InterpreterBuilder
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(builder, name, _conversion(getattr(builder, name)))
    for name in ("binary_op", "unary_op", "ternary_op"):
        # The last operand is the numpy function.
        setattr(builder, name, _in_float32(getattr(builder, name)))
    for name in ("create_fma", "create_rsqrt", "create_erf"):
        setattr(builder, name, _in_float32(getattr(builder, name)))
    builder.create_dot = _dot(builder.create_dot)
    builder.get_bf16 = lambda self, value: TensorHandle(
        narrow(np.array([value], np.float32)), tl.bfloat16
    )
    ReduceScanOpInterface.apply = _reduction(ReduceScanOpInterface.apply)


# ---- memory ------------------------------------------------------------------------------------


class StrayAccess(RuntimeError):
    """A kernel's address lies outside the tensors that the kernel was given."""


class _Allowed:
    """The address ranges of the running launch."""

    def __init__(self, arguments: Iterable[Any]):
        leaves = pytree.tree_leaves(list(arguments))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self.begin = np.array(sorted(storages), np.uint64)
        self.end = np.array([b + storages[b] for b in sorted(storages)], np.uint64)

    def check(self, what: str, pointers: TensorHandle, mask: np.ndarray) -> None:
        address = np.broadcast_to(pointers.data, np.shape(mask))[mask]
        if address.size == 0:
            return
        size = max(8, pointers.get_element_ty().primitive_bitwidth) // 8
        owner = np.searchsorted(self.begin, address, side="right").astype(np.int64) - 1
        stray = (owner < 0) | (address + np.uint64(size) > self.end[owner])
        if stray.any():
            first = int(address[stray][0])
            ranges = ", ".join(
                f"[{b:#x}, {e:#x})" for b, e in zip(self.begin, self.end, strict=True)
            )
            raise StrayAccess(
                f"{what} of {size} bytes at {first:#x} and {int(stray.sum()) - 1} more outside "
                f"the kernel's tensors {ranges}"
            )


_allowed: _Allowed | None = None


def guard_memory() -> None:
    """Check every load and store of interpreted kernels, once for the process."""
    if getattr(GridExecutor, "is_guarded", False):
        return
    GridExecutor.is_guarded = True
    init, load, store = (
        GridExecutor._init_args_hst,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def guarded_init(self, args, kwargs):
        global _allowed
        on_host = init(self, args, kwargs)
        _allowed = _Allowed(on_host)
        return on_host

    def guarded_load(self, pointers, mask, *rest):
        _allowed.check("load", pointers, mask.data)
        return load(self, pointers, mask, *rest)

    def guarded_store(self, pointers, value, mask, *rest):
        _allowed.check("store", pointers, mask.data)
        return store(self, pointers, value, mask, *rest)

    GridExecutor._init_args_hst = guarded_init
    InterpreterBuilder.create_masked_load = guarded_load
    InterpreterBuilder.create_masked_store = guarded_store


# ---- speed -------------------------------------------------------------------------------------


def patch_once_a_launch() -> None:
    """Let functions of one module share their patched triton.language, once for the process."""
    if getattr(GridExecutor, "patches_once", False):
        return
    GridExecutor.patches_once = True
    launch, patch = GridExecutor.__call__, interpreter._patch_lang
    patched: set[str] = set()  # modules whose functions the running launch has called

    def launch_anew(self, *args, **kwargs):
        patched.clear()  # a launch takes its patches back when it ends
        return launch(self, *args, **kwargs)

    def patch_once(function):
        module = function.__module__
        if module in patched:
            return interpreter._LangPatchScope()
        patched.add(module)
        return patch(function)

    GridExecutor.__call__, interpreter._patch_lang = launch_anew, patch_once
