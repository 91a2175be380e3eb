"""abstract_token_fork: the queries of MAT's windows, two readers, one gradient."""

import pytest
import torch
from joined_ops import (
    Calls,
    assert_compiles_into_one_graph,
    assert_equal_gradients,
    assert_gradients_near,
)

from hybrid_kernels import abstract_token_attention, abstract_token_fork, token_fusion
from python_ref import ops as reference

SHAPE, WINDOW = (2, 5, 6, 3, 2, 4), 3


def arguments(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = SHAPE, (3, 2, 4), (2, 7, 2, 2, 4), (2, 2, 4)
    qkv, token, kv, pad_kv = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    kinds = dtype, wide, dtype, wide
    tensors = zip((qkv, token, kv, pad_kv), kinds, strict=True)
    return [x.to(kind).requires_grad_() for x, kind in tensors]


def fused(out, summary, query, kv):
    """What MAT does with the results; the summaries count, too."""
    flat = (t.flatten(1, 2) for t in (query, out))
    q, y = flat
    return token_fusion(q, kv, y, 0.5) + summary.sum(dim=1, keepdim=True)


def joined(qkv, token, kv, pad_kv):
    return fused(*abstract_token_fork(qkv, token, WINDOW, 0.5, pad_kv), kv)


def apart(qkv, token, kv, pad_kv):
    out, summary = abstract_token_attention(qkv, token, WINDOW, 0.5, pad_kv)
    return fused(out, summary, qkv[:, :, :, 0], kv)


def test_gradients_are_right():
    assert torch.autograd.gradcheck(joined, arguments())


@pytest.mark.parametrize("wanted", range(1, 2**4))
def test_every_subset_of_gradients_equals_the_reference(wanted):
    assert_equal_gradients(joined, apart, arguments(), wanted)


@pytest.mark.parametrize("reader", range(3))
def test_any_result_may_be_the_only_one_read(reader):
    qkv, token, _, pad_kv = arguments()
    results = [
        fork(qkv, token, WINDOW, 0.5, pad_kv)[reader]
        for fork in (abstract_token_fork, reference.abstract_token_fork)
    ]
    torch.testing.assert_close(*results)
    grad = torch.randn_like(results[0])
    leaves = (qkv,) if reader == 2 else (qkv, token, pad_kv)
    torch.testing.assert_close(*(torch.autograd.grad(y, leaves, grad) for y in results))


def test_the_gradient_of_qkv_is_written_once():
    args = arguments(torch.float32)
    y = joined(*args)
    grad = torch.ones_like(y)
    with Calls() as calls:
        y.backward(grad)
    writers = [op for op, shape in calls.seen if shape == SHAPE and op is not torch.ops.aten.detach]
    assert writers == [torch.ops.hybrid.abstract_token_attention_backward]


def test_autocast_casts_once():
    args = arguments(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = joined(*args)
        assert abstract_token_fork(*args[:2], WINDOW)[2].dtype == torch.bfloat16
        expected = apart(*args)
    assert torch.equal(y, expected)
    assert_gradients_near(y, expected, args)


def test_compiles_into_one_graph():
    args = arguments(torch.float32)
    assert_compiles_into_one_graph(joined, args)


def test_bad_arguments_are_refused():
    qkv, token, *_ = arguments()
    with pytest.raises((ValueError, RuntimeError), match="token has shape"):
        abstract_token_fork(qkv, token[:2])
