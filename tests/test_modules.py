"""Drop-in modules: the reference's state dict and numbers, on fused ops alone."""

import pytest
import torch
from torch import Tensor, nn

from hybrid_kernels import nn as fused
from hybrid_kernels.models import accelerated_ops
from hybrid_kernels.nn import FUSED
from hybrid_kernels.nn.modules import OnFusedOps
from python_ref.layers.dynamic_branch import ConvAttention, GlobalAttention
from python_ref.ops import OpTable

MAP = (2, 9, 10, 32)  # cuts the last windows, patches and regions
# Of every module: what it is built with, and the shapes of its tensors.
CALLS = {
    "AbstractTokenAttention": (lambda: (32, 2, 4), [MAP]),
    "AtrousAttention": (lambda: (32, 2, (1, 2), 4), [MAP]),
    "AtrousInvertedResidual": (lambda: (32, 16, 2), [(2, 32, 9, 10)]),
    "ConvAttention": (lambda: (32,), [MAP]),
    "ConvFeedForward": (lambda: ([12, 20], 2), [MAP]),
    "CrossScaleAttention": (lambda: (32, 2, 7), [MAP]),
    "CvTAttention": (lambda: (32, 2), [MAP]),
    "DynamicBranch": (lambda: (32, [(ConvAttention(16), 4), (GlobalAttention(16), 6)]), [MAP]),
    "GlobalAttention": (lambda: (32,), [MAP]),
    "Injection": (lambda: (32, 12, 16), [(2, 32, 9, 10), (2, 12, 3, 4)]),
    "MCGAttention": (lambda: (32, 2), [MAP]),
    "PartialAttention": (lambda: (32, 2, 4), [MAP]),
    "RegionMixer": (lambda: (32, 2, 4), [MAP]),
    "StaticBranch": (lambda: (32,), [MAP]),
    "WindowAttention": (lambda: (32, 2, 4, 2), [MAP]),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A module on fused ops and the reference's with the same numbers, far from their start."""
    module = getattr(fused, name)
    _, reference_class = module.__bases__
    torch.manual_seed(0)
    build, _ = CALLS[name]
    found, expected = module(*build()).double(), reference_class(*build()).double()
    for parameter in expected.parameters():
        nn.init.normal_(parameter, std=0.3)
    found.load_state_dict(expected.state_dict())
    return found, expected


def results(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of all inputs and parameters."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = module(*inputs)
    grads = torch.autograd.grad(y.square().sum(), [*inputs, *module.parameters()])
    return [y, *grads]


@pytest.mark.parametrize("name", CALLS)
def test_module_equals_the_reference(name):
    found, expected = pair(name)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in CALLS[name][1]]
    torch.testing.assert_close(
        results(found, inputs), results(expected, inputs), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("name", CALLS)
def test_every_block_is_on_fused_ops(name):
    found, expected = pair(name)
    blocks = [m for m in found.modules() if isinstance(getattr(m, "ops", None), OpTable)]
    assert blocks and all(block.ops is FUSED for block in blocks)
    assert accelerated_ops(found) and not accelerated_ops(expected)


def test_cross_stage_attention_equals_the_reference():
    torch.manual_seed(0)
    arguments = {"in_widths": (8, 24), "heads": 2, "head_dim": 7}
    found = fused.MSCSA(**arguments).double()
    expected = fused.MSCSA.__bases__[1](**arguments).double()
    found.load_state_dict(expected.state_dict())
    maps = [torch.randn(2, 8, 12, 14), torch.randn(2, 24, 6, 7)]
    ys = [module([x.double() for x in maps], (6, 7)) for module in (found, expected)]
    torch.testing.assert_close(*ys, rtol=1e-8, atol=1e-8)


def test_every_module_is_tested():
    modules = {name for name in fused.__all__ if isinstance(getattr(fused, name), type)}
    assert modules == {*CALLS, "MSCSA"}
    assert all(issubclass(getattr(fused, name), OnFusedOps) for name in modules)


def test_an_unknown_argument_is_refused_as_by_the_reference():
    with pytest.raises(ValueError, match="heads must divide dim = 32, got 3"):
        fused.AbstractTokenAttention(32, 3)
