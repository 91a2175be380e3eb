"""value_conv: the harness's properties, and what is particular to this op."""

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import value_conv
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import value_conv as samples


class TestValueConv(OpSuite):
    declaration = samples.DECLARATION

    def test_second_derivative(self, small_sample):
        if small_sample.name == "plain":
            pytest.skip("without a norm the op is linear in its first argument")
        super().test_second_derivative(small_sample)


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_the_norm_inside_is_the_norm_after_it():
    *inputs, scale, shift = arguments("norm")
    after = F.hardswish(scale * value_conv(*inputs) + shift)
    torch.testing.assert_close(value_conv(*inputs, scale, shift), after)


def test_without_a_norm_the_gradient_of_the_attention_is_that_of_the_result():
    out, *others = arguments("plain")
    out.requires_grad_()
    result = value_conv(out, *others)
    grad = torch.randn_like(result)
    assert torch.equal(torch.autograd.grad(result, out, grad)[0], grad)


def test_a_second_derivative_of_the_values_is_refused():
    out, v, *others = arguments("plain")
    v.requires_grad_()
    result = value_conv(out, v, *others)
    (grad,) = torch.autograd.grad(result.square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(grad.sum(), v)


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    out, v, *parameters = arguments("norm", torch.bfloat16)
    narrow = [p.bfloat16().requires_grad_() for p in parameters]
    y = value_conv(out, v, *narrow)
    assert torch.equal(y, value_conv(out, v, *(p.detach().float() for p in narrow)))
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(y.float().sum(), narrow))


@pytest.mark.parametrize("has_norm", [False, True])
def test_nan_in_the_values_reaches_their_neighbours_only(has_norm):
    out, v, weight, bias, *_ = arguments("one_size")
    v[0, 2, 3, 4] = float("nan")
    y = value_conv(out, v, weight, bias, *((bias, bias) if has_norm else ()))
    assert y[0, 1:4, 2:5, 4].isnan().all()
    assert y.isnan().sum() == 9


def test_derivative_of_the_values_at_the_corners_is_that_of_torch():
    corners = torch.tensor([-3.0, 3.0, -4.0, 4.0, 0.0], device=DEVICE).requires_grad_()
    weight = torch.zeros(3, 3, 1, device=DEVICE)
    weight[1, 1] = 1
    zero = torch.zeros(1, 1, 5, 1, device=DEVICE)
    y = value_conv(zero, corners[None, None, :, None], weight, zero[0, 0, 0]).flatten()
    expected = F.hardswish(corners)
    torch.testing.assert_close(y, expected)
    found, truth = (torch.autograd.grad(out.sum(), corners)[0] for out in (y, expected))
    torch.testing.assert_close(found, truth)


def test_flops_are_those_of_the_convolution():
    args = arguments("plain")
    with FlopCounterMode(display=False) as counter:
        value_conv(*args)
    assert counter.get_total_flops() == 2 * 9 * args[0].numel()
