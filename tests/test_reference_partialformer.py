"""PartialFormer's mixed heads, choice and return of tokens, in float64."""

import math

import pytest
import torch
from einops import rearrange
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    context_topk,
    mixed_head_attention,
    mixed_head_attention_backward,
    mixed_head_attention_out,
    partial_combine,
    partial_combine_backward,
)

SCALE = 0.7
# Images, tokens, heads, head width, expansion.
ATTENTIONS = [(2, 5, 3, 4, 2), (1, 2, 2, 3, 3), (2, 1, 1, 2, 1), (0, 4, 2, 2, 2)]
# Images, tokens, channels, foreground tokens.
COMBINATIONS = [(2, 7, 3, 3), (1, 4, 2, 4), (3, 1, 2, 1), (0, 4, 2, 2)]
every_attention = pytest.mark.parametrize("case", ATTENTIONS, ids=str)
every_combination = pytest.mark.parametrize("case", COMBINATIONS, ids=str)


def attention_sample(case) -> tuple[Tensor, ...]:
    batch, tokens, heads, width, expansion = case
    torch.manual_seed(tokens)
    qkv = (random(batch, tokens, heads, width, grad=True) for _ in range(3))
    mixed = expansion * heads
    shapes = ((mixed, heads), (mixed,), (heads, mixed), (heads,))
    return (*qkv, *(random(*shape, grad=True) for shape in shapes))


def attention_by_convolution(q, k, v, w1, b1, w2, b2):
    """Heads as channels of a map of scores, layers as 1x1 convolutions, softmax spelled out."""
    conv = torch.nn.functional.conv2d
    scores = SCALE * (q.transpose(1, 2) @ k.permute(0, 2, 3, 1))
    logits = conv(scores, w1[:, :, None, None], b1)
    lse = logits.exp().sum(dim=3).log()
    weights = conv((logits - lse[..., None]).exp(), w2[:, :, None, None], b2)
    return rearrange(weights @ v.transpose(1, 2), "b h m d -> b m h d"), lse


@every_attention
def test_mixed_heads_equal_convolutions_over_heads(case):
    check_equal(
        lambda *inputs: mixed_head_attention(*inputs, SCALE),
        attention_by_convolution,
        attention_sample(case),
    )


def test_mixing_with_the_identity_is_ordinary_attention():
    q, k, v, *_ = attention_sample(ATTENTIONS[0])
    eye, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    out = mixed_head_attention_out(q, k, v, eye, zero, eye, zero, SCALE)
    heads = (t.transpose(1, 2) for t in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, scale=SCALE)
    torch.testing.assert_close(out, expected.transpose(1, 2), **TOLERANCE)


def test_mixed_heads_follow_a_permutation_of_the_tokens():
    q, k, v, *mixing = attention_sample(ATTENTIONS[0])
    order = torch.randperm(q.shape[1])
    moved = mixed_head_attention_out(q[:, order], k[:, order], v[:, order], *mixing, SCALE)
    expected = mixed_head_attention_out(q, k, v, *mixing, SCALE)[:, order]
    torch.testing.assert_close(moved, expected, **TOLERANCE)


@every_attention
def test_mixed_head_backward_formulas_equal_autograd(case):
    inputs = attention_sample(case)
    out, lse = mixed_head_attention(*inputs, SCALE)
    grad = torch.randn_like(out)
    with torch.no_grad():
        found = mixed_head_attention_backward(grad, *inputs, lse, SCALE, True, True, True)
    torch.testing.assert_close(list(found), gradients(out, inputs, [grad]), **TOLERANCE)
    assert not found[4].any()


@pytest.mark.parametrize(("wanted", "owned"), [(0, (0, 1)), (1, (2,)), (2, (3, 4, 5, 6))])
def test_mixed_head_backward_returns_nothing_for_what_is_not_needed(wanted, owned):
    inputs = attention_sample(ATTENTIONS[0])
    with torch.no_grad():
        out, lse = mixed_head_attention(*inputs, SCALE)
        needs = (i == wanted for i in range(3))
        grads = mixed_head_attention_backward(out, *inputs, lse, SCALE, *needs)
    shapes = [inputs[i].shape if i in owned else (0,) for i in range(7)]
    assert [g.shape for g in grads] == shapes


def test_mixed_heads_pass_gradcheck():
    inputs = attention_sample((1, 3, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda *t: mixed_head_attention(*t, SCALE), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_stay_in_float32(dtype):
    inputs = [t.to(dtype) for t in attention_sample(ATTENTIONS[0])]
    out, lse = mixed_head_attention(*inputs, SCALE)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)


def choice_by_sorting(u: Tensor, n: int) -> Tensor:
    """Python's stable sort; NaN before all numbers."""
    chosen = []
    for means in u.mean(dim=2).tolist():
        order = sorted(range(len(means)), key=lambda i: (not math.isnan(means[i]), -means[i]))
        chosen.append(sorted(order[:n]))
    return torch.tensor(chosen, dtype=torch.int32)


@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_choice_equals_a_stable_sort(n, levels):
    """Few levels mean many equal scores."""
    torch.manual_seed(levels)
    u = torch.randint(levels, (3, 9, 1)).double().expand(3, 9, 4)
    assert torch.equal(context_topk(u, n), choice_by_sorting(u, n))


def test_the_lower_index_wins_among_equals():
    u = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]).reshape(1, 5, 1)
    assert context_topk(u, 3).tolist() == [[0, 1, 3]]


def test_nan_is_chosen_first():
    u = torch.tensor([3.0, torch.inf, torch.nan, 5.0, torch.nan]).reshape(1, 5, 1)
    assert context_topk(u, 3).tolist() == [[1, 2, 4]]
    assert context_topk(u, 2).tolist() == [[2, 4]]


def test_scores_are_compared_in_float32():
    # Their means differ by less than the precision of bfloat16.
    u = torch.tensor([[256.0, 256.0], [256.0, 258.0], [256.0, 256.0]]).to(torch.bfloat16)
    assert context_topk(u[None], 1).tolist() == [[1]]


def test_choice_is_not_differentiable_and_int32():
    index = context_topk(random(2, 5, 3, grad=True), 2)
    assert not index.requires_grad
    assert index.dtype == torch.int32
    assert context_topk(random(0, 5, 3), 2).shape == (0, 2)


def combination_sample(case) -> tuple[tuple[Tensor, ...], Tensor]:
    batch, tokens, channels, chosen = case
    torch.manual_seed(tokens)
    index = torch.rand(batch, tokens).argsort(dim=1)[:, :chosen].int()
    inputs = ((batch, tokens, channels), (batch, channels), (batch, chosen, channels))
    return tuple(random(*s, grad=True) for s in inputs), index


def combine_by_token(x: Tensor, update: Tensor, foreground: Tensor, index: Tensor) -> Tensor:
    rows = []
    for image, positions in enumerate(index.tolist()):
        rows += [
            foreground[image, positions.index(i)] if i in positions else x[image, i] + update[image]
            for i in range(x.shape[1])
        ]
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("case", COMBINATIONS[:3], ids=str)
def test_combination_equals_a_choice_for_every_token(case):
    inputs, index = combination_sample(case)
    check_equal(
        lambda *tensors: partial_combine(*tensors, index),
        lambda *tensors: combine_by_token(*tensors, index),
        inputs,
    )


@every_combination
def test_combination_backward_formulas_equal_autograd(case):
    inputs, index = combination_sample(case)
    out = partial_combine(*inputs, index)
    grad = torch.randn_like(out)
    found = partial_combine_backward(grad, index, True, True, True)
    torch.testing.assert_close(list(found), gradients(out, inputs, [grad]), **TOLERANCE)
    for wanted in range(3):
        grads = partial_combine_backward(grad, index, *(i == wanted for i in range(3)))
        shapes = [inputs[i].shape if i == wanted else (0,) for i in range(3)]
        assert [g.shape for g in grads] == shapes


Q, W, B = torch.zeros(2, 3, 2, 4), torch.zeros(4, 2), torch.zeros(4)
X, INDEX = torch.zeros(2, 5, 3), torch.zeros(2, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixed_head_attention(Q[:, :0], Q, Q, W, B, W.T, B[:2], 1.0), "q must be"),
        (lambda: mixed_head_attention(Q, Q[:1], Q, W, B, W.T, B[:2], 1.0), "k must be"),
        (lambda: mixed_head_attention(Q, Q, Q[:1], W, B, W.T, B[:2], 1.0), "v must be"),
        (lambda: mixed_head_attention(Q, Q, Q, W.T, B, W.T, B[:2], 1.0), "w1 must be"),
        (lambda: mixed_head_attention(Q, Q, Q, W, B[:2], W.T, B[:2], 1.0), "b1 must be"),
        (lambda: mixed_head_attention(Q, Q, Q, W, B, W, B[:2], 1.0), r"w2 must be .*\(2, 4\)"),
        (lambda: mixed_head_attention(Q, Q, Q, W, B, W.T, B, 1.0), "b2 must be"),
        (lambda: context_topk(X[0], 1), "u must be"),
        (lambda: context_topk(X, 0), "at least 1 and at most the N = 5 tokens, got 0"),
        (lambda: context_topk(X, 6), "got 6"),
        (lambda: partial_combine(X[0], X[:, 0], X[:, :2], INDEX), "x must be"),
        (lambda: partial_combine(X, X[:, 0], X[:, :2], INDEX[:1]), "index must be"),
        (lambda: partial_combine(X, X[:, 0], X[:, :0], INDEX[:, :0]), "1 <= n <= 5"),
        (lambda: partial_combine(X, X[:, 0], X[:, :2], INDEX.float()), "int32 or int64"),
        (lambda: partial_combine(X, X[0], X[:, :2], INDEX), "update must be"),
        (lambda: partial_combine(X, X[:, 0], X, INDEX), r"foreground must be .*\(2, 2, 3\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
