"""atrous_attention: the harness's properties, and what is particular to this op."""

import pytest
import torch
from harness import DEVICE, OpSuite, backend
from torch.utils.flop_counter import FlopCounterMode

import hybrid_kernels
from hybrid_kernels import atrous_attention
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import atrous_attention as samples


class TestAtrousAttention(OpSuite):
    declaration = samples.DECLARATION


def arguments(name: str = "stage4"):
    return samples.DECLARATION.by_name[name].build(Maker(torch.float32, DEVICE))


def test_dilation_one_is_window_attention_by_sdpa():
    qkv, bias, _, window, scale = arguments()
    mask = _expanded_bias(bias[0], window)
    query, key, value = qkv[:, :, :, 0].flatten(1, 2).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale
    )
    out = atrous_attention(qkv, bias, [1], window)
    torch.testing.assert_close(out[:, :, :, 0].flatten(1, 2).transpose(1, 2), expected)


def _expanded_bias(table: torch.Tensor, window: int) -> torch.Tensor:
    """(offsets, heads) -> (heads, query slot, key slot)."""
    slots = [(a, b) for a in range(window) for b in range(window)]
    rows = [
        [(a - c + window - 1) * (2 * window - 1) + b - d + window - 1 for c, d in slots]
        for a, b in slots
    ]
    return table[torch.tensor(rows, device=table.device)].permute(2, 0, 1)


def test_largest_dilation_is_grid_attention():
    qkv, bias, *_ = arguments("stage3")
    grid = atrous_attention(qkv, bias, [1, 2])[:, :, :, 1]
    # Each phase of a 14 x 14 map at dilation 2 is one window: attend inside each apart.
    for p in range(2):
        for q in range(2):
            phase = qkv[:, p::2, q::2, 1:]
            alone = atrous_attention(phase, bias[1:], [1])
            torch.testing.assert_close(grid[:, p::2, q::2], alone[:, :, :, 0])


def test_scale_defaults_to_the_inverse_root_of_the_head_width():
    qkv, bias, dilations, window, _ = arguments()
    scaled = atrous_attention(qkv, bias, dilations, window, scale=qkv.shape[-1] ** -0.5)
    assert torch.equal(atrous_attention(qkv, bias, dilations, window), scaled)


def test_sixteen_bit_table_is_widened_and_its_gradient_narrowed():
    qkv, bias, dilations, window, _ = arguments()
    table = bias.bfloat16().requires_grad_()
    out = atrous_attention(qkv.bfloat16(), table, dilations, window)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert table.grad.dtype == torch.bfloat16


def test_log_sum_exp_has_no_gradient():
    qkv, *rest = arguments()
    _, lse = torch.ops.hybrid.atrous_attention(qkv.requires_grad_(), *rest)
    assert not lse.requires_grad


def test_flops_count_both_products_of_every_valid_pair():
    qkv, *rest = arguments("ragged")  # 9 x 13: row windows of 7 and 2, column windows of 7 and 6
    with FlopCounterMode(display=False) as counter:
        torch.ops.hybrid.atrous_attention(qkv, *rest)
    pairs = (7**2 + 2**2) * (7**2 + 6**2)
    assert counter.get_total_flops() == 2 * 2 * pairs * qkv.shape[0] * 2 * 16


def test_ten_wrong_calls_say_what_is_wrong_and_what_to_do():
    qkv, bias, dilations, window, scale = arguments()
    call = torch.ops.hybrid.atrous_attention

    def differentiate_twice():
        out = atrous_attention(qkv.requires_grad_(), bias, dilations, window)
        (grad,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
        grad.sum().backward()

    wrong = {
        "rank": (
            lambda: call(qkv[0], bias, dilations, window, scale),
            r"qkv has .*expected.*\(B, H, W, branches, 3, heads, head width\)",
        ),
        "dtypes": (
            lambda: call(qkv.double(), bias, dilations, window, scale),
            "bias has .*float32; expected .*float64|float64, which only",
        ),
        "window 0": (
            lambda: call(qkv, bias, dilations, 0, scale),
            "window = 0; expected 1 to 16",
        ),
        "dilation 0": (
            lambda: call(qkv, bias, [0], window, scale),
            r"dilations = .*0.*; expected .*>= 1",
        ),
        "bias shape": (
            lambda: call(qkv, bias[:, :-1], dilations, window, scale),
            r"bias has shape \(1, 168, 2\); expected \(1, 169, 2\)",
        ),
        "two devices": (
            lambda: call(qkv, bias.to("meta"), dilations, window, scale),
            "bias is on meta but qkv is on .*; move them to one device",
        ),
        "meta": (
            lambda: call(qkv.to("meta")[..., :0], None, dilations, window, scale),
            "head width 0; expected 1 to 128",
        ),
        "second derivative": (differentiate_twice, "first derivatives only.*python_ref"),
        "unknown backend": (
            lambda: hybrid_kernels.set_backend("cudnn"),
            "backend = 'cudnn'; expected one of 'auto', 'reference'",
        ),
        "huge window": (
            lambda: call(qkv, bias, dilations, 1000, scale),
            "window = 1000; expected 1 to 16; for larger windows use",
        ),
    }
    assert len(wrong) == 10
    for name, (wrong_call, message) in wrong.items():
        with pytest.raises((ValueError, RuntimeError), match=message):
            wrong_call()
            pytest.fail(f"{name}: accepted")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replaying_a_cuda_graph_gives_the_bits_of_an_eager_call():
    qkv, bias, dilations, window, scale = (
        t.cuda() if isinstance(t, torch.Tensor) else t for t in arguments("stage3")
    )
    eager = torch.ops.hybrid.atrous_attention(qkv, bias, dilations, window, scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.ops.hybrid.atrous_attention(qkv, bias, dilations, window, scale)
    graph.replay()
    for a, b in zip(eager, captured, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(backend() != "cpu", reason="native CPU code under test")
def test_nan_in_one_window_stays_in_that_window():
    qkv, bias, *_ = arguments("stage3")
    qkv[0, 0, 0, 0] = float("nan")  # branch 0, dilation 1: the window of rows and columns 0 to 6
    out = atrous_attention(qkv, bias, [1, 2])
    assert out[0, :7, :7, 0].isnan().all()
    out[0, :7, :7, 0] = 0
    assert out.isfinite().all()
