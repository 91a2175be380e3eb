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
    with_gradients: bool = True,
) -> list[Agreement]:
    """Outputs and gradients of both models: the error is at most twice the reference's.

    Both errors are measured against the reference in float64, and `SCATTER` of the largest value is
    allowed beside. Image after image is tried until they agree on one: where a ReLU or a choice of
    tokens stands on the edge, two float32 runs part ways although both are right. A wrong operator
    is wrong on every image.

    Args:
        reference: A model in float32 that maps images to a tensor or several.
        accelerated: The same with other operators.
        images: float32 (B, C, H, W).
        dtype: What both run in: float32, or what autocast lowers them to.
        with_gradients: False compares outputs alone.

    Returns:
        One for the outputs, one for the gradient of the image, one for that of all parameters.
    """
    for image in images.split(1):
        agreements = _compare_on(reference, accelerated, image, dtype, with_gradients)
        if all(agreement.ok for agreement in agreements):
            break
    return agreements


def _compare_on(
    reference: nn.Module,
    accelerated: nn.Module,
    image: Tensor,
    dtype: torch.dtype,
    with_gradients: bool,
) -> list[Agreement]:
    see = results if with_gradients else outputs_alone
    exact = see(copy.deepcopy(reference).double(), image.double())
    with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        plain, fast = list(see(reference, image)), list(see(accelerated, image))
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
    yield "gradient of the image", of_image
    yield "gradient of the weights", torch.cat([grad.flatten() for grad in of_parameters])


def outputs_alone(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The first of `results`."""
    with torch.no_grad():
        outputs = pytree.tree_leaves(model(images))
    yield "outputs", torch.cat([out.flatten() for out in outputs])


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
