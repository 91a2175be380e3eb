"""Window attention with abstract tokens against other ways to write it, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    abstract_token_attention,
    abstract_token_attention_backward,
    abstract_token_attention_out,
)

SCALE = 0.7
# Images, height, width, window, heads, head width.
CASES = [(2, 6, 9, 3, 2, 4), (1, 7, 5, 3, 3, 2), (2, 1, 1, 3, 1, 2), (1, 2, 8, 7, 2, 3)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
both_paddings = pytest.mark.parametrize("padded_keys", [False, True])


def sample(case, padded_keys: bool) -> tuple[Tensor, ...]:
    batch, height, width, _, heads, head_dim = case
    torch.manual_seed(height * 100 + width)
    qkv = random(batch, height, width, 3, heads, head_dim, grad=True)
    pad = (random(2, heads, head_dim, grad=True),) if padded_keys else ()
    return qkv, random(3, heads, head_dim, grad=True), *pad


def windows_of(height: int, width: int, window: int) -> list[list[tuple[int, int]]]:
    """The pixels of every window that lie inside the map."""
    corners = itertools.product(range(0, height, window), range(0, width, window))
    return [
        [
            (i, j)
            for i in range(i0, i0 + window)
            for j in range(j0, j0 + window)
            if i < height and j < width
        ]
        for i0, j0 in corners
    ]


def attention_by_window(qkv: Tensor, token: Tensor, window: int, pad_kv: Tensor | None):
    """Window by window over the pixels that exist: no padded map and no mask."""
    out = torch.zeros_like(qkv[:, :, :, 0])
    summaries, lses = [], []
    for pixels in windows_of(*qkv.shape[1:3], window):
        rows, columns = torch.tensor(pixels).unbind(dim=1)
        query, key, value = (
            torch.cat([token[part].expand(qkv.shape[0], 1, -1, -1), qkv[:, rows, columns, part]], 1)
            for part in range(3)
        )
        if pad_kv is not None:
            missing = (qkv.shape[0], window**2 - len(pixels), -1, -1)
            key = torch.cat([key, pad_kv[0].expand(missing)], dim=1)
            value = torch.cat([value, pad_kv[1].expand(missing)], dim=1)
        exponentials = (SCALE * torch.einsum("brhd,bshd->bhrs", query, key)).exp()
        total = exponentials.sum(dim=-1)
        result = torch.einsum("bhrs,bshd->brhd", exponentials / total[..., None], value)
        out = out.index_put((torch.arange(qkv.shape[0])[:, None], rows, columns), result[:, 1:])
        lse = torch.zeros(*total.shape[:2], 1 + window**2, dtype=torch.float64)
        slots = [0] + [1 + i % window * window + j % window for i, j in pixels]
        summaries.append(result[:, 0])
        lses.append(lse.index_copy(-1, torch.tensor(slots), total.log()))
    return out, torch.stack(summaries, dim=1), torch.stack(lses, dim=1)


@every_case
@both_paddings
def test_attention_equals_windows_without_padding(case, padded_keys):
    window = case[3]

    def ours(qkv, token, pad_kv=None):
        return abstract_token_attention(qkv, token, window, SCALE, pad_kv)

    def other(qkv, token, pad_kv=None):
        return attention_by_window(qkv, token, window, pad_kv)

    check_equal(ours, other, sample(case, padded_keys))


def test_padded_keys_are_zeros_that_went_through_the_linear_layer():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 18, dtype=torch.float64)
    x, token = random(1, 4, 5, 6), random(3, 2, 3)

    def split(y):
        return rearrange(y, "b i j (three h d) -> b i j three h d", three=3, h=2)

    pad_kv = rearrange(linear.bias, "(three h d) -> three h d", three=3, h=2)[1:]
    found = abstract_token_attention_out(split(linear(x)), token, 3, SCALE, pad_kv)
    padded = split(linear(F.pad(x, (0, 0, 0, 1, 0, 2))))
    out, summary = abstract_token_attention_out(padded, token, 3, SCALE)
    torch.testing.assert_close(found, (out[:, :4, :5], summary), **TOLERANCE)


def test_masked_padding_leaves_no_trace_of_a_neighbour():
    qkv, token = sample((1, 7, 5, 3, 2, 2), False)
    out, summary = abstract_token_attention_out(qkv, token, 3, SCALE)
    corner, corner_summary = abstract_token_attention_out(qkv[:, 6:, 3:], token, 3, SCALE)
    torch.testing.assert_close(out[:, 6:, 3:], corner, **TOLERANCE)
    torch.testing.assert_close(summary[:, -1:], corner_summary, **TOLERANCE)


@every_case
@both_paddings
@pytest.mark.parametrize("has_extra", [False, True])
def test_backward_formulas_equal_autograd(case, padded_keys, has_extra):
    inputs, window = sample(case, padded_keys), case[3]
    pad_kv = inputs[2] if padded_keys else None
    out, summary, lse = abstract_token_attention(*inputs[:2], window, SCALE, pad_kv)
    grads = [torch.randn_like(out), torch.randn_like(summary)]
    extra = torch.randn_like(out) if has_extra else None
    expected = gradients((out, summary), inputs, grads)
    if has_extra:
        expected[0][:, :, :, 0] += extra
    with torch.no_grad():
        found = abstract_token_attention_backward(
            *grads, *inputs[:2], pad_kv, out, summary, lse, extra, window, SCALE, True, True, True
        )
    torch.testing.assert_close(list(found[: len(inputs)]), expected, **TOLERANCE)
    assert padded_keys or found[2].shape == (0,)


def test_backward_returns_nothing_for_what_is_not_needed():
    inputs = sample(CASES[1], True)
    with torch.no_grad():
        out, summary, lse = abstract_token_attention(*inputs[:2], 3, SCALE, inputs[2])
        for wanted in range(3):
            grads = abstract_token_attention_backward(
                out, summary, *inputs, out, summary, lse, None, 3, SCALE,
                *(i == wanted for i in range(3)),
            )  # fmt: skip
            shapes = [inputs[i].shape if i == wanted else (0,) for i in range(3)]
            assert [g.shape for g in grads] == shapes


def test_a_key_bias_of_the_token_matters():
    # All other biases of keys cancel in the softmax; the token is a row among others.
    qkv, token = sample(CASES[0], False)
    (grad,) = torch.autograd.grad(
        abstract_token_attention_out(qkv, token, 3, SCALE)[0].square().sum(), token
    )
    assert grad[1].abs().max() > 1e-3


def test_the_output_alone_equals_the_triple():
    qkv, token, pad_kv = sample(CASES[1], True)
    out, summary, _ = abstract_token_attention(qkv, token, 3, SCALE, pad_kv)
    alone = abstract_token_attention_out(qkv, token, 3, SCALE, pad_kv)
    assert torch.equal(out, alone[0])
    assert torch.equal(summary, alone[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_stay_in_float32_whatever_the_dtype_of_the_token(dtype):
    qkv, token = sample(CASES[1], False)
    out, summary, lse = abstract_token_attention(qkv.to(dtype), token.float(), 3, SCALE)
    assert (out.dtype, summary.dtype, lse.dtype) == (dtype, dtype, torch.float32)


@pytest.mark.parametrize(("batch", "height", "width"), [(0, 5, 5), (2, 0, 3), (2, 3, 0)])
def test_attention_on_nothing_is_nothing(batch, height, width):
    qkv, token = random(batch, height, width, 3, 2, 4, grad=True), random(3, 2, 4, grad=True)
    out, summary, lse = abstract_token_attention(qkv, token, 3, SCALE)
    windows = -(-height // 3) * -(-width // 3)
    assert out.shape == (batch, height, width, 2, 4)
    assert (summary.shape, lse.shape) == ((batch, windows, 2, 4), (batch, windows, 2, 10))
    (out.sum() + summary.sum()).backward()
    assert not token.grad.any()


@both_paddings
def test_gradcheck(padded_keys):
    inputs = sample((1, 2, 3, 2, 1, 2), padded_keys)
    assert torch.autograd.gradcheck(
        lambda qkv, token, pad_kv=None: abstract_token_attention_out(qkv, token, 2, SCALE, pad_kv),
        inputs,
    )


QKV, TOKEN = torch.zeros(1, 4, 5, 3, 2, 6), torch.zeros(3, 2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QKV[..., 0], TOKEN, 7, 1.0), "qkv must be"),
        ((QKV, TOKEN[:2], 7, 1.0), r"token must be \(3, h, d\) = \(3, 2, 6\)"),
        ((QKV, TOKEN, 0, 1.0), "window must be at least 1, got 0"),
        ((QKV, TOKEN, 7, 1.0, TOKEN), r"pad_kv must be \(2, h, d\) = \(2, 2, 6\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        abstract_token_attention(*arguments)
