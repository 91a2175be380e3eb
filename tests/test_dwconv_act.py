"""dwconv_act: the harness's properties, and what is particular to this op."""

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import dwconv_act
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import dwconv_act as samples


class TestDwconvAct(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_a_residual_inside_is_one_in_the_centre_of_the_kernels():
    x, weight, bias, _ = arguments("gelu")
    apart = F.gelu(x + dwconv_act(x, weight, bias))
    centre = torch.zeros(3, 3, 1, device=DEVICE)
    centre[1, 1] = 1
    torch.testing.assert_close(dwconv_act(x, weight + centre, bias, "gelu"), apart)


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    x, weight, bias, act = arguments("gelu", torch.bfloat16)
    narrow = [p.bfloat16().requires_grad_() for p in (weight, bias)]
    y = dwconv_act(x, *narrow, act)
    assert torch.equal(y, dwconv_act(x, *(p.detach().float() for p in narrow), act))
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(y.float().sum(), narrow))


@pytest.mark.parametrize("act", ["none", "relu", "relu6", "gelu", "hardswish"])
def test_nan_stays_nan_and_reaches_its_neighbours_only(act):
    x, weight, bias, _ = arguments("one_size")
    x[0, 2, 3, 4] = float("nan")
    y = dwconv_act(x, weight, bias, act)
    assert y[0, 1:4, 2:5, 4].isnan().all()
    assert y.isnan().sum() == 9


@pytest.mark.parametrize("act", ["relu", "relu6", "hardswish"])
def test_values_and_derivatives_at_the_corners_are_those_of_torch(act):
    corners = torch.tensor([-3.0, 0.0, 3.0, 6.0, -4.0, 7.0], device=DEVICE).requires_grad_()
    weight = torch.zeros(3, 3, 1, device=DEVICE)
    weight[1, 1] = 1
    y = dwconv_act(corners[None, None, :, None], weight, None, act).flatten()
    expected = getattr(F, act)(corners)
    torch.testing.assert_close(y, expected)
    found, truth = (torch.autograd.grad(out.sum(), corners)[0] for out in (y, expected))
    torch.testing.assert_close(found, truth)


def test_flops_are_those_of_the_convolution():
    x, weight, bias, act = arguments("gelu")
    with FlopCounterMode(display=False) as counter:
        dwconv_act(x, weight, bias, act)
    assert counter.get_total_flops() == 2 * 9 * x.numel()
