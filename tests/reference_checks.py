"""What the tests of the reference operators share: float64 samples and comparisons."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TOLERANCE = {"atol": 1e-12, "rtol": 1e-10}


def random(*shape: int, grad: bool = False) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def tensors(result: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of an op as a tuple, be they one or several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def gradients(
    result: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """Autograd's gradients of `inputs`; zeros for an input that the result does not depend on."""
    found = torch.autograd.grad(
        tensors(result), list(inputs), list(grads), allow_unused=True, materialize_grads=True
    )
    return list(found)


def check_equal(first: Callable, second: Callable, inputs: Sequence[Tensor]) -> None:
    """Two formulations agree: outputs, and gradients of all inputs for random output gradients."""
    ours, others = tensors(first(*inputs)), tensors(second(*inputs))
    torch.testing.assert_close(ours, others, **TOLERANCE)
    grads = [torch.randn_like(out) for out in ours]
    torch.testing.assert_close(
        gradients(ours, inputs, grads), gradients(others, inputs, grads), **TOLERANCE
    )
