"""region_sample: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite, dtypes
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import region_sample
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import region_sample as samples


class TestRegionSample(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


@pytest.mark.skipif(torch.float64 in dtypes(), reason="float64 is computed here")
def test_float64_is_refused_by_name():
    with pytest.raises((RuntimeError, ValueError), match=r"x (has|is) (torch\.)?float64"):
        region_sample(*arguments("ragged", torch.float64))


def backward(name: str, dtype: torch.dtype, dx_init: torch.Tensor | None) -> list[torch.Tensor]:
    x, weight, _ = arguments(name, dtype)
    grad = Maker(dtype, DEVICE, seed=3).data(*region_sample(x, weight).shape)
    return torch.ops.hybrid.region_sample_backward(grad, x, weight, dx_init, True, True, True)


@pytest.mark.parametrize("name", ["ragged", "region_beyond_map", "sliced"])
def test_what_another_consumer_adds_to_the_gradient_is_added_in_the_same_pass(name):
    x = arguments(name)[0]
    init = Maker(torch.float32, DEVICE, seed=5).data(*x.shape)
    alone, joined = (backward(name, torch.float32, each) for each in (None, init))
    torch.testing.assert_close(joined[0], alone[0] + init)
    assert all(torch.equal(a, b) for a, b in zip(joined[1:], alone[1:], strict=True))


def test_what_is_added_may_have_any_strides():
    x = arguments("ragged")[0]
    init = Maker(torch.float32, DEVICE, seed=5).data(*x.shape[2:], *x.shape[:2]).permute(2, 3, 0, 1)
    strided, dense = (backward("ragged", torch.float32, i) for i in (init, init.contiguous()))
    assert torch.equal(strided[0], dense[0])


def test_a_sum_in_bfloat16_is_rounded_once():
    """128.501 is next to 129; but 0.501 alone is next to 0.5, and 128.5 would become 128."""
    x = torch.zeros(1, 1, 1, 8, device=DEVICE).bfloat16()
    weight = torch.full((1, 1, 8), 0.501, device=DEVICE)
    grad, init = torch.ones_like(x), torch.full_like(x, 128.0)
    found = torch.ops.hybrid.region_sample_backward(grad, x, weight, init, True, False, False)
    assert (found[0].float() == 129).all()


def test_an_initial_gradient_that_does_not_fit_is_refused():
    x, weight, _ = arguments("ragged")
    grad = region_sample(x, weight)
    op = torch.ops.hybrid.region_sample_backward
    with pytest.raises((ValueError, RuntimeError), match="dx_init has shape"):
        op(grad, x, weight, x[:, 1:], True, True, True)
    with pytest.raises((ValueError, RuntimeError), match="dx_init is given but need_x is false"):
        op(grad, x, weight, x, False, True, True)


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    x, weight, _ = arguments("ragged", torch.bfloat16)
    narrow = weight.bfloat16().requires_grad_()
    s = region_sample(x, narrow)
    assert torch.equal(s, region_sample(x, narrow.detach().float()))
    assert torch.autograd.grad(s.float().sum(), narrow)[0].dtype == torch.bfloat16


def test_flops_are_those_of_the_convolution():
    x, weight, _ = arguments("even")
    with FlopCounterMode(display=False) as counter:
        s = region_sample(x, weight)
    assert counter.get_total_flops() == 2 * 4 * s.numel()
