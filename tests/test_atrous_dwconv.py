"""atrous_dwconv: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

import python_ref.ops
from hybrid_kernels import atrous_dwconv
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import atrous_dwconv as samples


class TestAtrousDwconv(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_a_branch_that_nobody_uses_counts_as_zero_gradient():
    x, weight, dilations, stride = arguments("three")
    x.requires_grad_(), weight.requires_grad_()
    found = torch.autograd.grad(atrous_dwconv(x, weight, dilations, stride)[1].sum(), (x, weight))
    alone = atrous_dwconv(x, weight[1:2], dilations[1:2], stride)[0]
    for one, other in zip(found, torch.autograd.grad(alone.sum(), (x, weight)), strict=True):
        torch.testing.assert_close(one, other)


def test_16_bit_weights_are_converted_and_get_16_bit_gradients():
    x, weight, dilations, stride = arguments("three", torch.bfloat16)
    narrow = weight.bfloat16().requires_grad_()
    ys = atrous_dwconv(x, narrow, dilations, stride)
    expected = atrous_dwconv(x, narrow.detach().float(), dilations, stride)
    assert all(torch.equal(y, e) for y, e in zip(ys, expected, strict=True))
    assert torch.autograd.grad(ys[0].float().sum(), narrow)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("stride", [1, 2])
def test_backward_formulas_of_the_reference_equal_autograd(stride):
    x, weight, dilations, _ = arguments("three")
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    ys = python_ref.ops.atrous_dwconv(x, weight, dilations, stride)
    grads = [torch.randn_like(y) for y in ys]
    expected = torch.autograd.grad(ys, (x, weight), grads)
    found = python_ref.ops.atrous_dwconv_backward(
        grads, x.detach(), weight.detach(), dilations, stride, True, True
    )
    torch.testing.assert_close(found, expected)


def test_flops_are_those_of_the_convolutions():
    x, weight, dilations, stride = arguments("strided")
    with FlopCounterMode(display=False) as counter:
        y, _ = atrous_dwconv(x, weight, dilations, stride)
    assert counter.get_total_flops() == 2 * 2 * 9 * y.numel()
