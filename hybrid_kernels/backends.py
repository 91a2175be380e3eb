"""Which kernel serves each op: the native CPU and CUDA code, Triton, or the PyTorch reference.

Every backend sits *under* ``torch.ops.hybrid.<op>``: choosing one exchanges the kernel that the
dispatcher calls for CPU or CUDA tensors. So compiled graphs, autograd and modules follow the
switch without being traced or built again, and the default costs nothing. The switch is
process-wide, because backward passes and compiled graphs run outside any scope of the caller.
"""

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import _native

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


@dataclass(frozen=True)
class Service:
    """What serves an op on a device, and why."""

    backend: str
    reason: str
    is_fallback: bool = False


@dataclass(frozen=True)
class _Op:
    module: str  # of hybrid_kernels.triton and python_ref.ops
    check: Callable  # raises on bad arguments
    native: frozenset[str]  # device types with compiled code
    has_triton: bool


_ops: dict[str, _Op] = {}
_current = "auto"
_overrides: torch.library.Library | None = None
_announced: set[tuple[str, str]] = set()


def add_op(name: str, module: str, check: Callable) -> None:
    """Make ``torch.ops.hybrid.<name>`` follow the switch (called once, by its registration)."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    native = frozenset(d for d, key in DEVICE_KEYS.items() if has_kernel(f"hybrid::{name}", key))
    spec = importlib.util.find_spec(f"hybrid_kernels.triton.{module}")
    _ops[name] = _Op(module, check, native, spec is not None)


def op_names() -> list[str]:
    """Names of all registered ops, backward ops included."""
    return sorted(_ops)


def get_backend() -> str:
    """The backend asked for: one of ``BACKENDS``."""
    return _current


def set_backend(name: str) -> None:
    """Choose the kernels of every op, process-wide.

    Args:
        name: ``"auto"`` (compiled code where there is some, else Triton, else the reference),
            ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Raises:
        ValueError: ``name`` is no backend.
        RuntimeError: the backend is not built or cannot run here; says how to get it.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend = {name!r}; expected one of {', '.join(map(repr, BACKENDS))}")
    missing = _why_unavailable(name)
    if missing:
        raise RuntimeError(f"backend {name!r} cannot be used here: {missing}")
    _install(name)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """``set_backend(name)`` for a ``with`` block. Process-wide, for backward passes too."""
    before = _current
    set_backend(name)
    try:
        yield
    finally:
        _install(before)


def service(op: str, device_type: str, backend: str | None = None) -> Service:
    """Tell which kernel serves ``op`` for tensors on ``device_type`` ("cpu" or "cuda"), and why."""
    wanted = backend or _current
    entry = _ops[op]
    emulated = _native.build_info().get("emulator")
    if wanted == "reference":
        return Service("reference", "asked for")
    if wanted == "triton" and entry.has_triton:
        return Service("triton", "asked for")
    if device_type in entry.native:
        name = "cuda" if emulated else device_type
        if wanted == name:
            return Service(name, "asked for")
        if wanted == "auto":
            return Service(name, "host emulation of the CUDA code" if emulated else "compiled code")
    if wanted in ("cpu", "cuda") and wanted != device_type and not emulated:
        return Service("none", f"backend {wanted!r} does not take {device_type} tensors")
    return _fallback(entry, device_type, f"the library has no {device_type} code for it")


def _fallback(entry: _Op, device_type: str, reason: str) -> Service:
    if device_type == "cuda" and entry.has_triton:
        if importlib.util.find_spec("triton"):
            return Service("triton", reason, is_fallback=True)
        reason += ", and triton is not installed"
    return Service("reference", reason, is_fallback=True)


def _why_unavailable(name: str) -> str | None:
    info = _native.build_info()
    if name == "cpu" and info.get("emulator"):
        return "this library was built for the host emulator and holds no CPU code"
    if name == "cuda" and not info.get("emulator"):
        if not info.get("cuda"):
            return (
                "the library was built without CUDA; install nvcc (CUDA toolkit) and build "
                "again with `HYBRID_CUDA=1 pip install .`"
            )
        if not torch.cuda.is_available():
            return "torch sees no CUDA device (torch.cuda.is_available() is False)"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; `pip install triton`"
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            return (
                "torch sees no CUDA device; to run the Triton kernels on CPU tensors by its "
                "interpreter, set TRITON_INTERPRET=1 before Python starts"
            )
    return None


def _install(name: str) -> None:
    """Put the Python kernels that ``name`` asks for over the compiled ones."""
    global _current, _overrides
    if _overrides is not None:
        _overrides._destroy()
    _current, _overrides = name, torch.library.Library("hybrid", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for op in _ops:
            for device_type in DEVICE_KEYS:
                _install_kernel(_overrides, op, device_type)


def _install_kernel(library: torch.library.Library, op: str, device_type: str) -> None:
    chosen = service(op, device_type)
    if chosen.backend in ("cpu", "cuda"):
        return  # the compiled kernel is already there
    kernel = _python_kernel(op, device_type, chosen)
    library.impl(op, kernel, DEVICE_KEYS[device_type], allow_override=True)


def _python_kernel(op: str, device_type: str, chosen: Service) -> Callable:
    module = {"triton": "hybrid_kernels.triton", "reference": "python_ref.ops"}

    def kernel(*args):
        if chosen.backend == "none":
            raise RuntimeError(
                f"{op}: {chosen.reason}; move them, or call hybrid_kernels.set_backend('auto')"
            )
        if chosen.is_fallback and (op, device_type) not in _announced:
            _announced.add((op, device_type))
            warnings.warn(
                f"{op} on {device_type} tensors is served by {chosen.backend}: {chosen.reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        _ops[op].check(*args)
        launcher = importlib.import_module(f"{module[chosen.backend]}.{_ops[op].module}")
        return getattr(launcher, op)(*args)

    return kernel
