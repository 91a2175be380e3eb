"""region_fork, region_attention and RegionMixer: one map, two readers, one gradient."""

import pytest
import torch
from joined_ops import (
    Calls,
    assert_compiles_into_one_graph,
    assert_equal_gradients,
    assert_gradients_near,
)

import hybrid_kernels
from hybrid_kernels import multiscale_attention, region_attention, region_fork
from hybrid_kernels.nn import FUSED, RegionMixer
from python_ref.layers import MRLMixer
from python_ref.ops import region_mix, region_sample

SHAPE, REGION = (2, 5, 6, 4), 2


def attend(tokens):
    """Attention of every token to all, two heads."""
    rows = tokens.flatten(1, 2).unflatten(-1, (2, -1))
    return multiscale_attention(rows, rows, rows).flatten(-2).view_as(tokens)


def arguments(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = SHAPE, (REGION, REGION, 4), (3, 3, 4), (4,), (4,)
    x, *parameters = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    return [x.to(dtype).requires_grad_(), *(p.to(wide).requires_grad_() for p in parameters)]


def joined(x, sample_weight, mix_weight, sample_bias, mix_bias):
    return region_attention(x, sample_weight, mix_weight, attend, sample_bias, mix_bias)


def apart(x, sample_weight, mix_weight, sample_bias, mix_bias):
    g = attend(region_sample(x, sample_weight, sample_bias))
    return region_mix(x, g, mix_weight, REGION, mix_bias)


def test_gradients_are_right():
    assert torch.autograd.gradcheck(joined, arguments())


@pytest.mark.parametrize("wanted", range(1, 2**5))
def test_every_subset_of_gradients_equals_the_reference(wanted):
    assert_equal_gradients(joined, apart, arguments(), wanted)


def test_the_gradient_of_the_map_is_written_once():
    args = arguments(torch.float32)
    y = joined(*args)
    grad = torch.ones_like(y)
    with Calls() as calls:
        y.backward(grad)
    writers = [op for op, shape in calls.seen if shape == SHAPE and op is not torch.ops.aten.detach]
    ops = torch.ops.hybrid
    assert writers == [ops.region_mix_backward, ops.region_sample_backward]


@pytest.mark.parametrize("reader", [0, 1])
def test_either_result_of_the_fork_may_go_unread(reader):
    x, weight, _, bias, _ = arguments()
    out = region_fork(x, weight, bias)[reader]
    expected = (region_sample(x, weight, bias), x * 1)[reader]
    grad = torch.randn_like(out)
    gradients = [torch.autograd.grad(t, x, grad)[0] for t in (out, expected)]
    torch.testing.assert_close(*gradients)


def test_autocast_casts_the_map_once():
    args = arguments(torch.float32)
    x, sample_weight, mix_weight, sample_bias, mix_bias = args
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = joined(*args)
        assert region_fork(x, sample_weight)[1].dtype == torch.bfloat16
        g = attend(hybrid_kernels.region_sample(x, sample_weight, sample_bias))
        expected = hybrid_kernels.region_mix(x, g, mix_weight, REGION, mix_bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    assert_gradients_near(y, expected, args)


def test_compiles_into_one_graph():
    args = arguments(torch.float32)
    assert_compiles_into_one_graph(joined, args)


@pytest.mark.parametrize("options", [{}, {"samplers": 3, "kv_conv": False}, {"gc": "replace"}])
@pytest.mark.parametrize("training", [True, False])
def test_module_equals_the_reference(options, training):
    torch.manual_seed(0)
    reference = MRLMixer(8, 2, 2, **options).double().train(training)
    fused = RegionMixer(8, 2, 2, **options).double().train(training)
    fused.load_state_dict(reference.state_dict())
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    ys = [mixer(x) for mixer in (fused, reference)]
    torch.testing.assert_close(*ys)
    grad = torch.randn_like(x)
    results = [
        torch.autograd.grad(y, [x, *mixer.parameters()], grad)
        for y, mixer in zip(ys, (fused, reference), strict=True)
    ]
    torch.testing.assert_close(*results)
    assert fused.attention.ops is FUSED and reference.attention.ops is not FUSED


def test_bad_arguments_are_refused():
    x, weight, *_ = arguments()
    with pytest.raises((ValueError, RuntimeError), match="weight has shape"):
        hybrid_kernels.region_fork(x, weight[:1])
