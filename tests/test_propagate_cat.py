"""propagate_cat: the harness's properties, and what is particular to this op."""

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import propagate_cat
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import propagate_cat as samples


class TestPropagateCat(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    maps, kernels, is_tokens, *size = samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))
    given = iter(kernels)
    return maps, [next(given) if tokens else None for tokens in is_tokens], *size


def test_ones_are_nearest_upsampling():
    z, ones = torch.randn(2, 3, 4, 5, device=DEVICE), torch.ones(4, 4, 5, device=DEVICE)
    y = propagate_cat([z], [ones], 12, 16)
    expected = F.interpolate(z.permute(0, 3, 1, 2), scale_factor=4).permute(0, 2, 3, 1)
    assert torch.equal(y, expected)
    assert torch.equal(propagate_cat([z], [ones], 10, 13), expected[:, :10, :13])


def test_pixels_without_a_token_are_zero():
    maps, kernels, height, width = arguments("floor")
    y = propagate_cat(maps, kernels, height, width)
    assert (y[:, 4:, :, :3] == 0).all()
    assert (y[:, :, 6:, :3] == 0).all()
    assert (y[:, :4, :6, :3] != 0).all()


def test_full_size_maps_are_copied_bit_by_bit():
    maps, kernels, height, width = arguments("one_size", torch.bfloat16)
    maps[1][0, 0, 0, 0] = float("nan")
    y = propagate_cat(maps, kernels, height, width)
    torch.testing.assert_close(y[..., 5:], maps[1], atol=0, rtol=0, equal_nan=True)


def test_what_a_token_gives_and_gets_back_is_the_sum_over_its_pixels():
    z = torch.randn(1, 2, 2, 3, device=DEVICE, requires_grad=True)
    kernel = torch.randn(2, 2, 3, device=DEVICE, requires_grad=True)
    propagate_cat([z], [kernel], 3, 4).sum().backward()
    torch.testing.assert_close(z.grad[0, 0, 0], kernel.detach().sum(dim=(0, 1)))
    torch.testing.assert_close(z.grad[0, 1, 1], kernel.detach()[0].sum(dim=0))
    torch.testing.assert_close(kernel.grad[1, 0], z.detach()[0, 0].sum(dim=0))


def test_16_bit_kernels_are_converted_and_get_16_bit_gradients():
    maps, kernels, *size = arguments("tokens", torch.bfloat16)
    narrow = kernels[0].bfloat16().requires_grad_()
    y = propagate_cat(maps, [narrow], *size)
    assert torch.equal(y, propagate_cat(maps, [narrow.detach().float()], *size))
    assert torch.autograd.grad(y.float().sum(), narrow)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("maps", [0, 2])
def test_maps_and_kernels_must_be_as_many(maps):
    z = torch.randn(1, 2, 2, 3, device=DEVICE)
    with pytest.raises(ValueError, match=f"propagate_cat: .* has {min(maps, 1)} entries"):
        propagate_cat([z] * maps, [None], 2, 2)


def test_flops_are_a_product_for_every_pixel_that_is_spread():
    maps, kernels, height, width = arguments("one_size")
    with FlopCounterMode(display=False) as counter:
        propagate_cat(maps, kernels, height, width)
    assert counter.get_total_flops() == 3 * 7 * 11 * 5
