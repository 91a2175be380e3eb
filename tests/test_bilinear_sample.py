"""bilinear_sample: the harness's properties, and what is particular to this op."""

import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite

from hybrid_kernels import bilinear_sample
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import bilinear_sample as samples


class TestBilinearSample(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_points_without_offset_read_the_mean_of_two_by_two_pixels():
    x, offset = arguments("even")
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(bilinear_sample(x, torch.zeros_like(offset)), pooled)


def test_16_bit_offsets_are_converted_and_get_16_bit_gradients():
    x, offset = arguments("odd", torch.bfloat16)
    narrow = offset.bfloat16().requires_grad_()
    y = bilinear_sample(x, narrow)
    assert torch.equal(y, bilinear_sample(x, narrow.detach().float()))
    (grad,) = torch.autograd.grad(y.float().sum(), narrow)
    assert grad.dtype == torch.bfloat16


def test_a_clamped_coordinate_gets_no_gradient():
    x, offset = arguments("odd")
    offset = torch.zeros_like(offset).requires_grad_()
    (grad,) = torch.autograd.grad(bilinear_sample(x, offset).square().sum(), offset)
    assert not grad[:, 2, :, 1].any()  # row 4.5 of a map that ends at 4
    assert grad[:, :2, :, 1].all()


def test_a_nan_or_infinite_offset_reads_within_the_map():
    x, offset = arguments("even")
    offset[0, 0, 0, 0], offset[0, 0, 1, 1] = float("nan"), float("inf")
    y = bilinear_sample(x, offset)
    assert y[0, 0, 0].isnan().all()
    assert y.isnan().sum() == x.shape[3]


def test_a_pixel_adds_up_what_all_points_read_from_it():
    x = torch.zeros(1, 8, 8, 3, device=DEVICE, requires_grad=True)
    offset = torch.full((1, 4, 4, 2), -100.0, device=DEVICE)
    (grad,) = torch.autograd.grad(bilinear_sample(x, offset).sum(), x)
    assert (grad[0, 0, 0] == 16).all()
    assert grad.count_nonzero() == 3
