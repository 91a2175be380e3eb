"""One call registers what an op has in Python: shapes, gradient, autocast rule, FLOPs, backends."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import register_flop_formula

from .. import backends

AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_library = torch.library.Library("hybrid", "FRAGMENT")


def register(
    name: str,
    *,
    module: str,
    check: Callable,
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    autocast: Sequence[str] = (),
    autocast_widest: Sequence[str] = (),
    flops: Callable | None = None,
) -> None:
    """Register the Python half of ``torch.ops.hybrid.<name>``, whose schema C++ has defined.

    Args:
        name: The op.
        module: The file of ``hybrid_kernels.triton`` and ``python_ref.ops`` that holds its kernels.
        check: Raises on bad arguments. Guards the fake, Triton and reference kernels; the compiled
            ones check in C++.
        fake: Shapes and dtypes of the outputs, from the arguments alone.
        setup_context: Saves what ``backward`` needs.
        backward: Gradients; ``None`` for an op without a derivative, which then says so.
        autocast: Arguments cast to autocast's dtype. The others keep theirs.
        autocast_widest: Arguments cast, under autocast, to the widest dtype among them.
        flops: Floating point operations from the arguments, for ``FlopCounterMode``.

    Raises:
        ImportError: The compiled library does not define the op.
    """
    if not hasattr(torch.ops.hybrid, name):
        raise ImportError(
            f"hybrid_kernels: the compiled library has no op {name}: it is older than the Python "
            "code beside it; run `make build`, or install the package again"
        )

    def checked_fake(*args):
        check(*args)
        return fake(*args)

    qualified = f"hybrid::{name}"
    torch.library.register_fake(qualified, checked_fake)
    packet = getattr(torch.ops.hybrid, name)
    backward = backward or _no_derivative(name)
    if "Tensor[]" in str(packet.default._schema):
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    else:
        _register_autograd(name, packet.default, setup_context, backward)
    if autocast or autocast_widest:
        _register_autocast(name, packet.default, tuple(autocast), tuple(autocast_widest))
    if flops:
        register_flop_formula(packet, get_raw=True)(flops)
    backends.add_op(name, module, check)


def require(ok: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``ok``."""
    if not ok:
        raise ValueError(message)


def require_tensor(
    op: str,
    name: str,
    tensor: Tensor,
    shapes: Sequence[Sequence[int]],
    meaning: str,
    dtype: torch.dtype,
    other: tuple[str, Tensor],
) -> None:
    """Raise ``ValueError`` unless a tensor has one of the shapes, the dtype, and other's device."""
    require(
        any(tuple(tensor.shape) == tuple(shape) for shape in shapes),
        f"{op}: {name} has shape {tuple(tensor.shape)}; expected "
        f"{' or '.join(str(tuple(shape)) for shape in shapes)} = {meaning}",
    )
    require(
        tensor.dtype == dtype,
        f"{op}: {name} has {tensor.dtype}; expected {dtype}; convert it with .to({dtype})",
    )
    other_name, like = other
    require(
        tensor.device == like.device,
        f"{op}: {name} is on {tensor.device} but {other_name} is on {like.device}; move them to "
        "one device",
    )


def _no_derivative(name: str) -> Callable:
    def backward(ctx, *grads):
        raise RuntimeError(
            f"{name} has no derivative: hybrid_kernels computes first derivatives only. For second "
            "ones (create_graph=True), differentiate the reference in python_ref.ops instead"
        )

    return backward


def _register_autograd(
    name: str, op: torch._ops.OpOverload, setup_context: Callable | None, backward: Callable
) -> None:
    """What `torch.library.register_autograd` does, for ops without lists of tensors, in fewer steps
    of Python: on small maps these took longer than the kernels."""

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with torch._C._AutoDispatchBelowAutograd():
                out = op(*args)
            if setup_context:
                setup_context(ctx, args, out)
            return out

        @staticmethod
        def backward(ctx, *grads):
            if torch.is_grad_enabled():  # create_graph=True: what the backward calls says why not
                return backward(ctx, *grads)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, *grads)

    def kernel(*args):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Derivative.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _library.impl(name, kernel, "Autograd")


def _register_autocast(
    name: str, op: torch._ops.OpOverload, cast: tuple[str, ...], widest: tuple[str, ...]
) -> None:
    names = [argument.name for argument in op._schema.arguments]
    for device_type, key in AUTOCAST_KEYS.items():
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args, device_type=device_type, keys=keys):
            given = dict(zip(names, args, strict=False))
            dtype = torch.get_autocast_dtype(device_type)
            given |= {arg: _lower(given[arg], dtype) for arg in cast}
            given |= _widened({arg: given[arg] for arg in widest})
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*given.values())

        _library.impl(name, kernel, key)


def _lower(value, dtype: torch.dtype):
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_lower(item, dtype) for item in value]
    is_wide = value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if is_wide else value


def _widened(values: dict) -> dict:
    """Tensors and lists of tensors, all in the widest floating dtype among them."""
    tensors = pytree.tree_leaves(values)
    if not tensors or not all(t.is_floating_point() for t in tensors):
        return values  # the op's check says what is wrong
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return pytree.tree_map(lambda t: t.to(dtype), values)
