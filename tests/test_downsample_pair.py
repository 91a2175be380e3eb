"""downsample_pair: the harness's properties, and what is particular to this op."""

import torch
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

from hybrid_kernels import downsample_pair
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import downsample_pair as samples


class TestDownsamplePair(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def test_sizes_round_up():
    x, *weights = arguments("one_pixel")
    sizes = [tuple(y.shape[1:3]) for y in downsample_pair(x.expand(1, 7, 8, -1), *weights)]
    assert sizes == [(4, 4), (3, 3)]


def test_the_norm_does_not_reach_the_padding():
    x, weight3, weight5, scale, shift = arguments("norm")
    inside = downsample_pair(x, weight3, weight5, scale, shift)
    before = downsample_pair(scale * x + shift, weight3, weight5)
    for found, expected in zip(inside, before, strict=True):
        torch.testing.assert_close(found, expected)


def test_one_output_alone_gives_the_gradient_of_its_taps():
    x, weight3, weight5, *_ = arguments("plain")
    weight3.requires_grad_()
    weight5.requires_grad_()
    x1, _ = downsample_pair(x, weight3, weight5)
    grad3, grad5 = torch.autograd.grad(x1.sum(), (weight3, weight5))
    assert grad3.abs().max() > 0
    assert not grad5.any()


def test_16_bit_parameters_are_converted_and_get_16_bit_gradients():
    x, *parameters = arguments("norm", torch.bfloat16)
    narrow = [p.bfloat16().requires_grad_() for p in parameters]
    ys = downsample_pair(x, *narrow)
    wide = downsample_pair(x, *(p.detach().float() for p in narrow))
    assert all(torch.equal(a, b) for a, b in zip(ys, wide, strict=True))
    grads = torch.autograd.grad(sum(y.float().sum() for y in ys), narrow)
    assert all(g.dtype == torch.bfloat16 for g in grads)


def test_nan_reaches_the_outputs_that_read_it_only():
    x, weight3, weight5, *_ = arguments("one_size")
    x[0, 3, 2, 4] = float("nan")
    x1, x2 = downsample_pair(x, weight3, weight5)
    assert x1[0, 1:3, 1, 4].isnan().all()
    assert x1.isnan().sum() == 2
    assert x2[0, 1, :2, 4].isnan().all()
    assert x2.isnan().sum() == 2


def test_flops_are_those_of_the_convolutions():
    x, *others = arguments("plain")
    with FlopCounterMode(display=False) as counter:
        x1, x2 = downsample_pair(x, *others)
    assert counter.get_total_flops() == 2 * (9 * x1.numel() + 25 * x2.numel())
