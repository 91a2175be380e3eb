"""region_mix: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite, dtypes
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import models, region_mix
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import region_mix as samples


class TestRegionMix(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


@pytest.mark.skipif(torch.float64 in dtypes(), reason="float64 is computed here")
def test_float64_is_refused_by_name():
    with pytest.raises((RuntimeError, ValueError), match=r"x (has|is) (torch\.)?float64"):
        region_mix(*arguments("ragged", torch.float64))


def test_tokens_reach_no_further_than_the_map():
    """A ragged region ends at the border: the zeros around the map stay zero."""
    x, g, weight, region, _ = arguments("region_beyond_map")
    y = region_mix(torch.zeros_like(x), torch.ones_like(g), torch.ones_like(weight), region)
    taps = torch.tensor([[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]], device=DEVICE)
    assert torch.equal(y, taps[None, :, :, None].expand_as(y))


def test_the_sum_is_not_rounded_before_the_convolution():
    """1 + 2^-9 is no bfloat16; its half next to a bfloat16 is seen after the factor 2^9."""
    shape = (1, 1, 1, 8)
    x, g = (torch.full(shape, v, device=DEVICE).bfloat16() for v in (1.0, 2.0**-9))
    weight = torch.full((1, 1, 8), 512.0, device=DEVICE)
    bias = torch.full((8,), -512.0, device=DEVICE)
    assert (region_mix(x, g, weight, 1, bias).float() == 1).all()


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    x, g, weight, region, _ = arguments("ragged", torch.bfloat16)
    narrow = weight.bfloat16().requires_grad_()
    y = region_mix(x, g, narrow, region)
    assert torch.equal(y, region_mix(x, g, narrow.detach().float(), region))
    assert torch.autograd.grad(y.float().sum(), narrow)[0].dtype == torch.bfloat16


def test_flops_are_those_of_the_convolution():
    x, g, weight, region, _ = arguments("even")
    with FlopCounterMode(display=False) as counter:
        region_mix(x, g, weight, region)
    assert counter.get_total_flops() == 2 * 9 * x.numel()


def test_accelerate_puts_both_regional_ops_into_mrl():
    settings = {"depths": (1, 1, 1), "widths": (16, 32, 48), "head_dim": 16}
    model = models.create_model("mrl_cvt_13", backend="auto", num_classes=3, **settings)
    report = models.accelerated_ops(model)
    assert sum("region_fork" in ops for ops in report.values()) == 3
    assert sum("region_mix" in ops for ops in report.values()) == 3
