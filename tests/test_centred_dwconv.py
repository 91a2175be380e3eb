"""centred_dwconv: the harness's properties, and what is particular to this op."""

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import centred_dwconv, dwconv_act
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import centred_dwconv as samples


class TestCentredDwconv(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_what_an_image_has_everywhere_is_gone():
    x, weight = arguments("one_size")
    level = 100 * torch.arange(x.shape[0], device=DEVICE)[:, None, None, None]
    torch.testing.assert_close(
        centred_dwconv(x + level, weight), centred_dwconv(x, weight), atol=1e-3, rtol=0
    )


def test_a_constant_map_gives_zeros_at_the_borders_too():
    _, weight = arguments("one_size")
    y = centred_dwconv(torch.full((2, 4, 5, 24), 3.0, device=DEVICE), weight)
    assert torch.equal(y, torch.zeros_like(y))


def test_the_gradient_of_x_has_no_mean():
    x, weight = arguments("one_size")
    x.requires_grad_()
    (grad,) = torch.autograd.grad(centred_dwconv(x, weight).square().sum(), x)
    assert grad.abs().amax() > 1
    assert grad.mean(dim=(1, 2)).abs().amax() < 1e-4


def test_centred_input_is_left_to_the_plain_convolution():
    x, weight = arguments("one_size")
    x = x - x.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(centred_dwconv(x, weight), dwconv_act(x, weight))


def test_nan_stays_in_its_image_and_channel():
    x, weight = arguments("one_size")
    x[0, 2, 3, 4] = float("nan")
    is_nan = centred_dwconv(x, weight).isnan()
    assert is_nan[0, :, :, 4].all()
    assert is_nan.sum() == x[0, :, :, 4].numel()


def test_16_bit_kernels_are_converted_and_get_16_bit_gradients():
    x, weight = arguments("two_images", torch.bfloat16)
    narrow = weight.bfloat16().requires_grad_()
    y = centred_dwconv(x, narrow)
    assert torch.equal(y, centred_dwconv(x, narrow.detach().float()))
    assert torch.autograd.grad(y.float().sum(), narrow)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 1), (31, 17)])
def test_values_are_those_of_convolution_after_padding_by_hand(size):
    x = torch.randn(2, *size, 3, device=DEVICE) + 1
    weight = torch.randn(3, 3, 3, device=DEVICE)
    padded = F.pad(x - x.mean(dim=(1, 2), keepdim=True), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)
    expected = F.conv2d(padded, weight.permute(2, 0, 1).unsqueeze(1), groups=3)
    torch.testing.assert_close(centred_dwconv(x, weight), expected.permute(0, 2, 3, 1))


def test_flops_are_those_of_the_convolution():
    x, weight = arguments("two_images")
    with FlopCounterMode(display=False) as counter:
        centred_dwconv(x, weight)
    assert counter.get_total_flops() == 2 * 9 * x.numel()
