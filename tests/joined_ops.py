"""For tests of ops that join several: which operators run, and gradients side by side."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """The operators that run, with the shapes of what they return."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        self.seen.append((func.overloadpacket, tuple(getattr(first, "shape", ()))))
        return out


def assert_equal_gradients(joined, apart, args, wanted):
    """Results, and the gradients of the arguments whose bits are set in `wanted`."""
    for index, arg in enumerate(args):
        arg.requires_grad_(bool(wanted >> index & 1))
    leaves = [arg for arg in args if arg.requires_grad]
    ys = joined(*args), apart(*args)
    torch.testing.assert_close(*ys)
    grad = torch.randn_like(ys[0])
    torch.testing.assert_close(*(torch.autograd.grad(y, leaves, grad) for y in ys))


def assert_gradients_near(y, expected, args):
    """float32 gradients of what ran under autocast, within the rounding of bfloat16."""
    grad = torch.randn_like(y)
    for result, truth in zip(
        torch.autograd.grad(y, args, grad), torch.autograd.grad(expected, args, grad), strict=True
    ):
        assert result.dtype == torch.float32
        assert (result - truth).abs().max() <= 2e-2 * truth.abs().max()


def assert_compiles_into_one_graph(function, args):
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = []
    for each in (compiled, function):
        y = each(*args)
        grads.append(torch.autograd.grad(y, args, torch.ones_like(y)))
    torch.testing.assert_close(*grads)
