"""conv_attention_fused: the harness's properties, and what is particular to this op."""

import torch
import torch.nn.functional as F
from harness import DEVICE, OpSuite, assert_accurate

from hybrid_kernels import conv_attention, conv_attention_fused
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import conv_attention_fused as samples
from python_ref.ops.depthwise import depthwise


class TestConvAttentionFused(OpSuite):
    declaration = samples.DECLARATION


def test_it_is_conv_attention_of_generated_logits():
    x, dw, weight, bias, value, heads, scale = samples.DECLARATION.by_name["odd"].build(
        Maker(torch.float32, DEVICE)
    )
    logits = F.linear(depthwise(x, dw, stride=2), weight, bias).unflatten(-1, (heads, 9, 9))
    expected = conv_attention(F.linear(x, value), logits, scale)
    found = conv_attention_fused(x, dw, weight, bias, value, heads, scale)
    torch.testing.assert_close(found, expected)


def test_channels_beyond_one_block_of_a_gpu():
    assert_accurate(samples.DECLARATION, samples.DECLARATION.by_name["wide"], torch.float32)


def test_a_bias_alone_decides_where_nothing_is_seen():
    """Without taps all windows have the same weights: here all of them point at their centre."""
    x, dw, weight, bias, _, heads, _ = samples.DECLARATION.by_name["even"].build(
        Maker(torch.float32, DEVICE)
    )
    bias = torch.full_like(bias, -1e4).unflatten(0, (heads, 9, 9))
    bias[..., 4] = 0.0
    identity = torch.eye(x.shape[3], device=DEVICE)
    y = conv_attention_fused(x, 0 * dw, weight, bias.flatten(), identity, heads, 1.0)
    assert torch.equal(y[:, ::2, ::2], x[:, ::2, ::2])
