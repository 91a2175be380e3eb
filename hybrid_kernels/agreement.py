"""Whole models by the accuracy rule: accelerated and reference, both against float64."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Sums of millions of terms in another order: errors of two runs scatter about each other by this
# share of the largest value even where both are right.
SCATTER = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Agreement:
    """A result of both models against the reference in float64, as largest differences."""

    name: str
    reference: float
    accelerated: float
    allowed: float

    @property
    def share(self) -> float:
        """Error as a share of what is allowed; nan if a value is not finite."""
        if self.allowed:
            return self.accelerated / self.allowed
        return math.inf if self.accelerated > 0 else self.accelerated

    @property
    def ok(self) -> bool:
        return self.share <= 1


def compare(
    reference: nn.Module,
    accelerated: nn.Module,
    images: Tensor,
    dtype: torch.dtype = torch.float32,
) -> list[Agreement]:
    """Outputs and gradients of both models: the error is at most twice the reference's.

    Both errors are measured against the reference in float64, and `SCATTER` of the largest value is
    allowed beside.

    Args:
        reference: A model in float32 that maps images to a tensor or several.
        accelerated: The same with other operators.
        images: float32 (B, C, H, W).
        dtype: What both run in: float32, or what autocast lowers them to.

    Returns:
        One for the outputs, one for the gradient of the images, one for that of all parameters.
    """
    exact = results(copy.deepcopy(reference).double(), images.double())
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        plain, fast = list(results(reference, images)), list(results(accelerated, images))
    agreements = []
    for (name, truth), (_, a), (_, b) in zip(exact, plain, fast, strict=True):
        plain_error, error = ((value - truth).abs().max().item() for value in (a, b))
        allowed = 2 * plain_error + SCATTER[dtype] * truth.abs().max().item()
        agreements.append(Agreement(name, plain_error, error, allowed))
    return agreements


def results(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Outputs, and gradients of a random loss, each as one tensor with its name."""
    outputs, of_image, of_parameters = gradients(model, images)
    yield "outputs", torch.cat([out.detach().flatten() for out in outputs])
    yield "gradient of the images", of_image
    yield "gradient of the weights", torch.cat([grad.flatten() for grad in of_parameters])


def gradients(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Outputs, gradient of the images, and of every parameter, of a loss with random gradient."""
    images = images.detach().requires_grad_()
    outputs = pytree.tree_leaves(model(images))
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(out.shape, generator=generator).to(out.device, out.dtype) for out in outputs
    ]
    of_image, *others = torch.autograd.grad(outputs, [images, *model.parameters()], cotangents)
    return outputs, of_image, others
