"""The reference operators against other ways to write the same mathematics, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_checks import TOLERANCE, random
from torch import Tensor

from python_ref.ops import (
    atrous_attention,
    atrous_attention_backward,
    atrous_attention_out,
    atrous_dwconv,
    atrous_merge,
    atrous_partition,
    gated_fuse,
    gated_fuse_backward,
)

DIVISIBLE = [(14, 14, 1), (14, 14, 2), (28, 28, 4), (56, 56, 8), (28, 14, 2), (9, 6, 1)]
RAGGED = [
    (1, 1, (2, 1)),
    (5, 3, (8, 1)),
    (9, 13, (1, 3)),
    (17, 10, (4, 2)),
    (96, 96, (1, 2, 4, 8)),
    (50, 84, (1, 2)),
]


def sample(height: int, width: int, branches: int, window: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(height * 1000 + width)
    heads, head_dim, batch = 2, 3, 1 if height * width > 2500 else 2
    qkv = random(batch, height, width, branches, 3, heads, head_dim, grad=True)
    return qkv, random(branches, (2 * window - 1) ** 2, heads, grad=True)


def attend(query: Tensor, key: Tensor, value: Tensor, scores_bias: Tensor, scale: float):
    """Softmax attention (..., tokens, head_dim) and its log-sum-exp, spelled out."""
    scores = scale * torch.einsum("...sc,...tc->...st", query, key) + scores_bias
    lse = scores.exp().sum(dim=-1).log()
    return torch.einsum("...st,...tc->...sc", (scores - lse[..., None]).exp(), value), lse


def bias_of_slots(table: Tensor, slots: list[tuple[int, int]], window: int) -> Tensor:
    """table ((2P-1)**2, h) -> (h, slots, slots), read as a map of row and column offsets."""
    offsets = table.reshape(2 * window - 1, 2 * window - 1, -1)
    a, b = torch.tensor(slots).unbind(dim=1)
    rows, columns = a[:, None] - a[None, :], b[:, None] - b[None, :]
    return offsets[rows + window - 1, columns + window - 1].permute(2, 0, 1)


def attention_by_rearrangement(qkv, table, dilation, window, scale):
    """One branch as the paper's supplement A.1 prints it, then a window split; sizes must tile."""
    height, width = qkv.shape[1:3]
    d, u, v = dilation, height // (window * dilation), width // (window * dilation)
    submaps = rearrange(qkv, "b (h hs) (w ws) three n c -> (b hs ws) h w three n c", hs=d, ws=d)
    split = "b (u a) (v b2) three n c -> three b u v n (a b2) c"
    query, key, value = rearrange(submaps, split, u=u, v=v)
    slots = list(itertools.product(range(window), repeat=2))
    out, lse = attend(query, key, value, bias_of_slots(table, slots, window), scale)
    merged = rearrange(out, "b u v n (a b2) c -> b (u a) (v b2) n c", a=window)
    merged_lse = rearrange(lse, "b u v n (a b2) -> b (u a) (v b2) n", a=window)
    inverse = "(b hs ws) h w ... -> b (h hs) (w ws) ..."
    return rearrange(merged, inverse, hs=d, ws=d), rearrange(merged_lse, inverse, hs=d, ws=d)


def windows_by_index(height: int, width: int, dilation: int, window: int):
    """Windows that hold a pixel: their pixels (flat) and slots, by the converse index formula."""
    side = window * dilation
    for p, q in itertools.product(range(dilation), repeat=2):
        for u, v in itertools.product(range(-(-height // side)), range(-(-width // side))):
            pixels, slots = [], []
            for a, b in itertools.product(range(window), repeat=2):
                i, j = (u * window + a) * dilation + p, (v * window + b) * dilation + q
                if i < height and j < width:
                    pixels.append(i * width + j)
                    slots.append((a, b))
            if pixels:
                yield pixels, slots


def attention_by_index(qkv, table, dilation, window, scale):
    """One branch, window by window over the pixels that exist: no padding and no mask."""
    height, width = qkv.shape[1:3]
    tokens = rearrange(qkv, "b h w three n c -> three b n (h w) c")
    pixels, outs, lses = [], [], []
    for inside, slots in windows_by_index(height, width, dilation, window):
        query, key, value = tokens[:, :, :, inside]
        out, lse = attend(query, key, value, bias_of_slots(table, slots, window), scale)
        pixels += inside
        outs.append(out)
        lses.append(lse)
    order = torch.tensor(pixels).argsort()
    out = rearrange(torch.cat(outs, 2)[:, :, order], "b n (h w) c -> b h w n c", h=height)
    return out, rearrange(torch.cat(lses, 2)[:, :, order], "b n (h w) -> b h w n", h=height)


def check_attention(qkv, table, dilations, window, scale, other):
    out, lse = atrous_attention(qkv, table, dilations, window, scale)
    branches = [
        other(qkv[:, :, :, k], table[k], dilation, window, scale)
        for k, dilation in enumerate(dilations)
    ]
    expected = [torch.stack(parts, dim=3) for parts in zip(*branches, strict=True)]
    torch.testing.assert_close([out, lse], expected, **TOLERANCE)
    grad = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, (qkv, table), grad),
        torch.autograd.grad(expected[0], (qkv, table), grad),
        **TOLERANCE,
    )


@pytest.mark.parametrize(("height", "width", "dilation"), DIVISIBLE)
def test_attention_equals_the_rearrangement_of_the_paper(height, width, dilation):
    window = 3 if height == 9 else 7
    qkv, table = sample(height, width, 1, window)
    check_attention(qkv, table, (dilation,), window, 0.7, attention_by_rearrangement)


@pytest.mark.parametrize(("height", "width", "dilations"), RAGGED)
def test_attention_on_ragged_maps_equals_the_index_formula(height, width, dilations):
    qkv, table = sample(height, width, len(dilations))
    check_attention(qkv, table, dilations, 7, 0.7, attention_by_index)


def test_dilation_one_is_block_attention():
    qkv, table = sample(14, 21, 1)
    blocks = rearrange(qkv.squeeze(3), "b (u a) (v c) three h e -> three b u v h (a c) e", a=7, c=7)
    slots = list(itertools.product(range(7), repeat=2))
    out, _ = attend(*blocks, bias_of_slots(table[0], slots, 7), 0.5)
    expected = rearrange(out, "b u v h (a c) e -> b (u a) (v c) 1 h e", a=7)
    torch.testing.assert_close(
        atrous_attention_out(qkv, table, (1,), 7, 0.5), expected, **TOLERANCE
    )


@pytest.mark.parametrize("dilation", [2, 4])
def test_side_of_seven_dilations_is_grid_attention(dilation):
    qkv, table = sample(7 * dilation, 7 * dilation, 1)
    grid = rearrange(qkv.squeeze(3), "b (a u) (c v) three h e -> three b u v h (a c) e", a=7, c=7)
    slots = list(itertools.product(range(7), repeat=2))
    out, _ = attend(*grid, bias_of_slots(table[0], slots, 7), 0.5)
    expected = rearrange(out, "b u v h (a c) e -> b (a u) (c v) 1 h e", a=7)
    torch.testing.assert_close(
        atrous_attention_out(qkv, table, (dilation,), 7, 0.5), expected, **TOLERANCE
    )


def test_bias_is_indexed_by_query_minus_key():
    qkv = torch.zeros(1, 1, 2, 1, 3, 1, 1, dtype=torch.float64)
    qkv[0, :, :, 0, 2, 0, 0] = torch.tensor([0.0, 1.0])
    table = torch.zeros(1, 9, 1, dtype=torch.float64)
    table[0, 1 * 3 + 0, 0] = 50.0  # same row, key one column to the right of the query
    out = atrous_attention_out(qkv, table, (1,), 2, 1.0).flatten()
    torch.testing.assert_close(out, torch.tensor([1.0, 0.5], dtype=torch.float64))


def test_the_output_alone_equals_the_pair():
    qkv, table = sample(9, 13, 2)
    both, _ = atrous_attention(qkv, table, (1, 3), 7, 0.7)
    assert torch.equal(both, atrous_attention_out(qkv, table, (1, 3), 7, 0.7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_stay_in_float32(dtype):
    qkv, table = sample(5, 3, 1)
    out, lse = atrous_attention(qkv.to(dtype), table.float(), (1,), 7, 0.7)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(("batch", "height", "width"), [(0, 5, 5), (2, 0, 3), (2, 3, 0)])
def test_attention_on_nothing_is_nothing(batch, height, width):
    qkv = random(batch, height, width, 2, 3, 2, 3, grad=True)
    table = random(2, 169, 2, grad=True)
    out, lse = atrous_attention(qkv, table, (1, 2), 7, 1.0)
    assert out.shape == (batch, height, width, 2, 2, 3)
    assert lse.shape == (batch, height, width, 2, 2)
    out.sum().backward()
    assert qkv.grad.shape == qkv.shape
    assert not table.grad.any()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "dilations"),
    [(14, 14, (1, 2)), (1, 1, (2,)), (5, 3, (8, 1)), (9, 13, (3,))],
)
def test_attention_backward_formulas_equal_autograd(height, width, dilations, has_bias):
    qkv, table = sample(height, width, len(dilations))
    inputs = (qkv, table) if has_bias else (qkv,)
    out, lse = atrous_attention(qkv, table if has_bias else None, dilations, 7, 0.7)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, inputs, grad)
    with torch.no_grad():
        grads = atrous_attention_backward(
            grad, qkv, table if has_bias else None, out, lse, dilations, 7, 0.7, True, has_bias
        )
    torch.testing.assert_close(grads[: len(inputs)], expected, **TOLERANCE)


def test_attention_backward_returns_nothing_for_what_is_not_needed():
    qkv, table = sample(5, 3, 1)
    with torch.no_grad():
        out, lse = atrous_attention(qkv, table, (1,), 7, 0.7)
        arguments = (out, qkv, table, out, lse, (1,), 7, 0.7)
        no_qkv, bias = atrous_attention_backward(*arguments, False, True)
        grad_qkv, no_bias = atrous_attention_backward(*arguments, True, False)
    assert no_qkv.shape == no_bias.shape == (0,)
    assert (grad_qkv.shape, bias.shape) == (qkv.shape, table.shape)


def test_attention_passes_gradcheck():
    qkv, table = random(1, 3, 4, 2, 3, 1, 2, grad=True), random(2, 9, 1, grad=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: atrous_attention(*inputs, (1, 2), 2, 0.7), (qkv, table)
    )


sizes = st.integers(min_value=0, max_value=40)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9))
def test_every_pixel_is_in_exactly_one_window(height, width, window, dilation):
    pixels = torch.arange(height * width).reshape(1, height, width, 1)
    windows = atrous_partition(pixels, window, dilation, fill=-1)
    assert torch.equal(windows[windows >= 0].sort().values, pixels.flatten())
    assert torch.equal(atrous_merge(windows, height, width, window, dilation), pixels)


def test_partition_equals_the_index_formula():
    height, width, window, dilation = 17, 10, 3, 2
    pixels = torch.arange(height * width).reshape(1, height, width, 1)
    windows = atrous_partition(pixels, window, dilation, fill=-1)[0, :, :, 0]
    inside = [row[row >= 0].tolist() for row in windows if (row >= 0).any()]
    assert inside == [p for p, _ in windows_by_index(height, width, dilation, window)]


def grouped_conv_gates(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gates (B, H, W, C, n) by a depthwise 1x1 convolution C -> n * C, channel-major."""
    branches, channels = weight.shape
    nchw = x.permute(0, 3, 1, 2)
    kernel = weight.T.reshape(channels * branches, 1, 1, 1)
    logits = F.conv2d(nchw, kernel, bias.T.flatten(), groups=channels)
    return rearrange(logits, "b (c n) h w -> b h w c n", n=branches).softmax(dim=-1)


def gate_sample(branches: int, gate: bool, scale: str | None):
    torch.manual_seed(branches)
    shape = (2, 3, 4, 5)
    x, m = random(*shape, grad=True), [random(*shape, grad=True) for _ in range(branches)]
    weight, bias = (random(branches, 5, grad=True) if gate else None for _ in range(2))
    width = {"channel": 5, "image": 1}.get(scale)
    factors = random(2, branches, width, grad=True) if width else None
    return x, m, weight, bias, factors


every_mode = pytest.mark.parametrize(
    ("branches", "gate", "scale", "residual"),
    list(itertools.product([1, 2, 3, 4], [True, False], [None, "channel", "image"], [True, False])),
)


@every_mode
def test_gated_fuse_equals_grouped_convolution_and_softmax(branches, gate, scale, residual):
    x, m, weight, bias, factors = gate_sample(branches, gate, scale)
    gates = grouped_conv_gates(x, weight, bias) if gate else 1 / branches
    stacked = torch.stack(m, dim=-1)
    if factors is not None:
        stacked = stacked * rearrange(factors, "b n c -> b 1 1 c n")
    expected = (gates * stacked).sum(dim=-1) + (x if residual else 0)
    torch.testing.assert_close(
        gated_fuse(x, m, weight, bias, factors, residual), expected, **TOLERANCE
    )


@every_mode
def test_gated_fuse_backward_formulas_equal_autograd(branches, gate, scale, residual):
    x, m, weight, bias, factors = gate_sample(branches, gate, scale)
    y = gated_fuse(x, m, weight, bias, factors, residual)
    grad = torch.randn_like(y)
    inputs = [t for t in (x, *m, weight, bias, factors) if t is not None]
    expected = torch.autograd.grad(y, inputs, grad, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        grad_x, grad_m, *rest = gated_fuse_backward(
            grad, x, m, weight, bias, factors, residual, True, [True] * branches, True, True
        )
    found = [grad_x, *grad_m, *(g for g in rest if g.numel())]
    torch.testing.assert_close(found, list(expected), **TOLERANCE)


def test_gated_fuse_backward_returns_nothing_for_what_is_not_needed():
    x, m, weight, bias, factors = gate_sample(2, True, "image")
    needs = (False, [True, False], False, False)
    with torch.no_grad():
        grads = gated_fuse_backward(x, x, m, weight, bias, factors, True, *needs)
    grad_x, (first, second), *parameters = grads
    assert first.shape == x.shape
    assert all(g.shape == (0,) for g in (grad_x, second, *parameters))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 7), (1, 2), (2, 9)])
def test_depthwise_convolutions_equal_their_definition(height, width, stride):
    torch.manual_seed(0)
    x, weight = random(2, height, width, 3), random(3, 3, 3, 3)
    maps = atrous_dwconv(x, weight, (1, 2, 3), stride)
    for k, (y, dilation) in enumerate(zip(maps, (1, 2, 3), strict=True)):
        padded = F.pad(x, (0, 0, dilation, dilation, dilation, dilation))
        expected = sum(
            padded[:, u * dilation :, v * dilation :][:, :height:stride, :width:stride]
            * weight[k, :, u, v]
            for u, v in itertools.product(range(3), repeat=2)
        )
        torch.testing.assert_close(y, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atrous_attention(random(2, 3), None, (1,), 7, 1.0), "qkv must be"),
        (lambda: atrous_attention(random(1, 2, 2, 1, 3, 1, 2), None, (1, 2), 7, 1.0), "dilations"),
        (lambda: atrous_attention(random(1, 2, 2, 1, 3, 1, 2), None, (0,), 7, 1.0), "dilations"),
        (lambda: atrous_attention(random(1, 2, 2, 1, 3, 1, 2), None, (1,), 0, 1.0), "window"),
        (
            lambda: atrous_attention(random(1, 2, 2, 1, 3, 1, 2), random(1, 9, 1), (1,), 7, 1.0),
            r"bias must be .*\(1, 169, 1\)",
        ),
        (lambda: atrous_partition(random(2, 3), 7, 1), "expected a tensor"),
        (lambda: atrous_merge(random(1, 2, 49, 3), 7, 7, 7, 1), r"has \(1, 49\)"),
        (lambda: gated_fuse(random(1, 2, 2, 3), [], None, None, None, True), "at least one"),
        (
            lambda: gated_fuse(random(1, 2, 2, 3), [random(1, 2, 2, 4)], None, None, None, True),
            r"m\[0\] must be",
        ),
        (
            lambda: gated_fuse(
                random(1, 1, 1, 3), [random(1, 1, 1, 3)], random(1, 3), None, None, True
            ),
            "together",
        ),
        (lambda: atrous_dwconv(random(1, 2, 2, 3), random(1, 2, 3, 3), (1,), 1), "weight must"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
