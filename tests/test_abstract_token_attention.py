"""abstract_token_attention: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite
from torch.utils.flop_counter import FlopCounterMode

import python_ref.ops
from hybrid_kernels import abstract_token_attention
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import abstract_token_attention as samples


class TestAbstractTokenAttention(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str, dtype: torch.dtype = torch.float32):
    return samples.DECLARATION.by_name[name].build(Maker(dtype, DEVICE))


def saved_for_backward(name: str, dtype: torch.dtype):
    """Gradients of both outputs, and the arguments of the backward up to the log-sum-exp."""
    qkv, token, window, scale, pad_kv = arguments(name, dtype)
    out, summary, lse = torch.ops.hybrid.abstract_token_attention(qkv, token, window, scale, pad_kv)
    make = Maker(dtype, DEVICE, seed=1)
    grads = make.data(*out.shape), make.data(*summary.shape)
    return (*grads, qkv, token, pad_kv, out, summary, lse), window, scale


@pytest.mark.parametrize("name", ["masked", "padded", "window_9", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_another_gradient_of_the_queries_is_added_to_theirs_alone(name, dtype):
    tensors, window, scale = saved_for_backward(name, dtype)
    shape = tensors[0].shape
    extra = Maker(dtype, DEVICE, seed=2).data(*shape[:3], 2, *shape[3:])[:, :, :, 1]  # any strides
    backward = torch.ops.hybrid.abstract_token_attention_backward
    needs = (True, True, tensors[4] is not None)
    plain = backward(*tensors, None, window, scale, *needs)
    found = backward(*tensors, extra, window, scale, *needs)
    expected = python_ref.ops.abstract_token_attention_backward(
        *tensors, extra, window, scale, *needs
    )
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert torch.equal(found[0][:, :, :, 1:], plain[0][:, :, :, 1:])
    assert torch.equal(found[1], plain[1])
    assert torch.equal(found[2], plain[2])


def test_weights_of_the_backward_sum_to_one_however_large_the_scores_are():
    # Of gradients of 1, the values get the weights: where the log-sum-exp is far from zero, its
    # rounding must not be in them.
    qkv, token, window, _, _ = arguments("stage4")
    leaves = qkv.requires_grad_(), token.requires_grad_()
    outs = abstract_token_attention(*leaves, window, scale=40.0)
    grad_qkv, grad_token = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
    weights = grad_qkv[:, :, :, 2].double().sum((0, 1, 2)) + grad_token[2].double()
    rows = outs[0][..., 0, 0].numel() + outs[1][..., 0, 0].numel()
    torch.testing.assert_close(weights / rows, torch.ones_like(weights), rtol=0, atol=1e-6)


def test_masked_padding_equals_the_crop_of_each_window():
    qkv, token, window, scale, _ = arguments("masked")
    out, summary = abstract_token_attention(qkv, token, window, scale)
    corner = qkv[:, :, 2:]
    alone, alone_summary = abstract_token_attention(corner, token, window, scale)
    torch.testing.assert_close(out[:, :, 2:], alone)
    torch.testing.assert_close(summary[:, -1:], alone_summary)


def test_the_gradient_of_the_token_is_kept_in_float32():
    qkv, token, window, scale, pad_kv = arguments("padded", torch.bfloat16)
    token, pad_kv = token.requires_grad_(), pad_kv.requires_grad_()
    out, summary = abstract_token_attention(qkv, token, window, scale, pad_kv)
    grads = torch.autograd.grad(out.float().sum() + summary.float().sum(), (token, pad_kv))
    assert [g.dtype for g in grads] == [torch.float32] * 2
    assert any((g != g.bfloat16()).any() for g in grads)


def test_16_bit_tokens_are_converted_and_get_16_bit_gradients():
    qkv, token, window, scale, pad_kv = arguments("padded", torch.bfloat16)
    narrow = [t.bfloat16().requires_grad_() for t in (token, pad_kv)]
    out, summary = abstract_token_attention(qkv, narrow[0], window, scale, narrow[1])
    wide = [t.detach().float() for t in narrow]
    assert torch.equal(out, abstract_token_attention(qkv, wide[0], window, scale, wide[1])[0])
    assert all(
        g.dtype == torch.bfloat16 for g in torch.autograd.grad(summary.float().sum(), narrow)
    )


def test_flops_count_the_pairs_that_exist():
    for name in ("masked", "padded", "window_9"):
        qkv, token, window, scale, pad_kv = arguments(name)
        B, H, W, _, h, d = qkv.shape
        pairs = 0
        for i in range(0, H, window):
            for j in range(0, W, window):
                rows = 1 + min(window, H - i) * min(window, W - j)
                pairs += rows * (rows if pad_kv is None else 1 + window**2)
        with FlopCounterMode(display=False) as counter:
            abstract_token_attention(qkv, token, window, scale, pad_kv)
        assert counter.get_total_flops() == 4 * B * h * d * pairs
