"""Attention of a few queries over many tokens, projected and absorbed, in float64."""

import pytest
import torch
from reference_checks import TOLERANCE, check_equal, gradients, random
from torch import Tensor

from python_ref.ops import (
    single_query_attention,
    single_query_attention_absorbed,
    single_query_attention_absorbed_backward,
    single_query_attention_absorbed_out,
    single_query_attention_backward,
    single_query_attention_out,
    single_query_pool,
    single_query_pool_backward,
)

SCALE = 0.7
# Images, queries, tokens, heads, widths of keys and of values, excluded tokens, shared queries.
CASES = [
    (2, 1, 9, 3, 4, 4, 3, False),
    (2, 8, 13, 2, 3, 3, None, True),
    (3, 2, 5, 2, 5, 3, 4, True),
    (1, 1, 1, 1, 2, 2, None, False),
    (2, 1, 7, 1, 3, 6, 0, False),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def chosen(batch: int, number: int, excluded: int | None) -> Tensor | None:
    """Other tokens in every image, in no order."""
    if excluded is None:
        return None
    return torch.rand(batch, number).argsort(dim=1)[:, :excluded].int()


def projected_sample(case) -> tuple[tuple[Tensor, ...], Tensor | None]:
    batch, queries, number, heads, width, value_width, excluded, shared = case
    torch.manual_seed(number)
    query = random(*(() if shared else (batch,)), queries, heads, width, grad=True)
    k = random(batch, number, heads, width, grad=True)
    v = random(batch, number, heads, value_width, grad=True)
    return (query, k, v), chosen(batch, number, excluded)


def absorbed_sample(case, has_bias: bool) -> tuple[tuple[Tensor, ...], Tensor | None]:
    batch, queries, number, heads, width, value_width, excluded, shared = case
    torch.manual_seed(number)
    query = random(*(() if shared else (batch,)), queries, heads, width, grad=True)
    x = random(batch, number, 6, grad=True)
    weights = [random(heads * w, 6, grad=True) for w in (width, value_width)]
    bias = [random(heads * value_width, grad=True)] if has_bias else []
    return (query, x, *weights, *bias), chosen(batch, number, excluded)


def attention_by_gathering(query: Tensor, k: Tensor, v: Tensor, exclude: Tensor | None):
    """Image by image and head by head over the tokens that are left: no mask."""
    outs, lses = [], []
    for image in range(k.shape[0]):
        gone = set() if exclude is None else set(exclude[image].tolist())
        left = [i for i in range(k.shape[1]) if i not in gone]
        rows = query[image] if query.ndim == 4 else query
        for head in range(k.shape[2]):
            scores = SCALE * rows[:, head] @ k[image, left, head].T
            outs.append(scores.softmax(dim=1) @ v[image, left, head])
            lses.append(scores.exp().sum(dim=1).log())
    out = torch.stack(outs).unflatten(0, k.shape[:3:2])
    return out.transpose(1, 2), torch.stack(lses).unflatten(0, k.shape[:3:2])


@every_case
def test_a_mask_equals_leaving_tokens_out(case):
    inputs, exclude = projected_sample(case)
    check_equal(
        lambda *tensors: single_query_attention(*tensors, SCALE, exclude),
        lambda *tensors: attention_by_gathering(*tensors, exclude),
        inputs,
    )


@every_case
@pytest.mark.parametrize("has_bias", [True, False])
def test_absorbed_equals_projected(case, has_bias):
    inputs, exclude = absorbed_sample(case, has_bias)
    heads = case[3]

    def projected(query, x, key_weight, value_weight, value_bias=None):
        k = torch.nn.functional.linear(x, key_weight)
        v = torch.nn.functional.linear(x, value_weight, value_bias)
        k, v = (t.unflatten(-1, (heads, -1)) for t in (k, v))
        return single_query_attention(query, k, v, SCALE, exclude)

    def absorbed(query, x, key_weight, value_weight, value_bias=None):
        return single_query_attention_absorbed(
            query, x, key_weight, value_weight, value_bias, SCALE, exclude
        )

    check_equal(absorbed, projected, inputs)


@every_case
def test_projected_backward_formulas_equal_autograd(case):
    inputs, exclude = projected_sample(case)
    out, lse = single_query_attention(*inputs, SCALE, exclude)
    grad = torch.randn_like(out)
    with torch.no_grad():
        found = single_query_attention_backward(
            grad, *inputs, out, lse, SCALE, exclude, True, True, True
        )
    torch.testing.assert_close(list(found), gradients(out, inputs, [grad]), **TOLERANCE)


@every_case
@pytest.mark.parametrize("has_bias", [True, False])
def test_absorbed_backward_formulas_equal_autograd(case, has_bias):
    inputs, exclude = absorbed_sample(case, has_bias)
    arguments = inputs if has_bias else (*inputs, None)
    out, lse = single_query_attention_absorbed(*arguments, SCALE, exclude)
    grad = torch.randn_like(out)
    with torch.no_grad():
        found = single_query_attention_absorbed_backward(
            grad, *arguments, lse, SCALE, exclude, True, True, True, True
        )
    expected = gradients(out, inputs, [grad])
    torch.testing.assert_close(list(found[: len(inputs)]), expected, **TOLERANCE)
    assert has_bias or found[4].shape == (0,)


@every_case
def test_pool_is_what_identical_projections_leave(case):
    """With identity matrices as projections, the absorbed form is the pool of one head."""
    batch, queries, number, _, width, _, excluded, shared = case
    torch.manual_seed(number)
    query = random(*(() if shared else (batch,)), queries, width, grad=True)
    x, one = random(batch, number, width, grad=True), torch.eye(width, dtype=torch.float64)
    exclude = chosen(batch, number, excluded)
    out, lse = single_query_pool(query, x, SCALE, exclude)
    expected, expected_lse = single_query_attention_absorbed(
        query.unsqueeze(-2), x, one, one, None, SCALE, exclude
    )
    torch.testing.assert_close(out, expected.squeeze(-2), **TOLERANCE)
    torch.testing.assert_close(lse, expected_lse.squeeze(1), **TOLERANCE)
    grad = torch.randn_like(out)
    with torch.no_grad():
        found = single_query_pool_backward(grad, query, x, out, lse, SCALE, exclude, True, True)
        none = single_query_pool_backward(grad, query, x, out, lse, SCALE, exclude, False, False)
    torch.testing.assert_close(list(found), gradients(out, (query, x), [grad]), **TOLERANCE)
    assert [g.shape for g in none] == [(0,), (0,)]


def test_backward_returns_nothing_for_what_is_not_needed():
    inputs, _ = projected_sample(CASES[0])
    with torch.no_grad():
        out, lse = single_query_attention(*inputs, SCALE)
        arguments = (out, *inputs, out, lse, SCALE, None)
        for wanted in range(3):
            grads = single_query_attention_backward(*arguments, *(i == wanted for i in range(3)))
            shapes = [inputs[i].shape if i == wanted else (0,) for i in range(3)]
            assert [g.shape for g in grads] == shapes


def test_absorbed_backward_returns_nothing_for_what_is_not_needed():
    inputs, _ = absorbed_sample(CASES[0], True)
    owners = [(0,), (1,), (2,), (3, 4)]
    with torch.no_grad():
        out, lse = single_query_attention_absorbed(*inputs, SCALE)
        for needed, owned in enumerate(owners):
            grads = single_query_attention_absorbed_backward(
                out, *inputs, lse, SCALE, None, *(i == needed for i in range(4))
            )
            shapes = [inputs[i].shape if i in owned else (0,) for i in range(5)]
            assert [g.shape for g in grads] == shapes


def test_shared_queries_equal_the_same_queries_for_every_image():
    (query, k, v), _ = projected_sample(CASES[1])
    repeated = query.expand(k.shape[0], *query.shape)
    assert torch.equal(
        single_query_attention_out(query, k, v, SCALE),
        single_query_attention_out(repeated, k, v, SCALE),
    )


def test_order_of_the_tokens_has_no_influence():
    (query, k, v), exclude = projected_sample(CASES[0])
    order = torch.randperm(k.shape[1])
    moved = order.argsort()[exclude.long()]
    torch.testing.assert_close(
        single_query_attention(query, k[:, order], v[:, order], SCALE, moved),
        single_query_attention(query, k, v, SCALE, exclude),
        **TOLERANCE,
    )


def test_one_token_gives_its_value_and_no_gradient_to_the_query():
    (query, k, v), _ = projected_sample(CASES[3])
    out = single_query_attention_out(query, k, v, SCALE)
    assert torch.equal(out, v)
    assert not torch.autograd.grad(out.sum(), query)[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_stay_in_float32(dtype):
    projected, _ = projected_sample(CASES[0])
    absorbed, _ = absorbed_sample(CASES[0], True)
    for op, inputs in (
        (single_query_attention, projected),
        (single_query_attention_absorbed, absorbed),
    ):
        out, lse = op(*(t.to(dtype) for t in inputs), SCALE)
        assert (out.dtype, lse.dtype) == (dtype, torch.float32)


def test_the_output_alone_equals_the_pair():
    for sample, op, out_op in (
        (projected_sample(CASES[0]), single_query_attention, single_query_attention_out),
        (
            absorbed_sample(CASES[0], True),
            single_query_attention_absorbed,
            single_query_attention_absorbed_out,
        ),
    ):
        inputs, exclude = sample
        out, _ = op(*inputs, SCALE, exclude)
        assert torch.equal(out, out_op(*inputs, SCALE, exclude))


def test_no_images_give_no_outputs():
    exclude = torch.zeros(0, 2, dtype=torch.int32)
    out, lse = single_query_attention(
        random(8, 2, 3), random(0, 4, 2, 3), random(0, 4, 2, 5), SCALE, exclude
    )
    assert (out.shape, lse.shape) == ((0, 8, 2, 5), (0, 2, 8))


@pytest.mark.parametrize("projected", [True, False])
def test_gradcheck(projected):
    torch.manual_seed(0)
    exclude = torch.tensor([[2, 0]], dtype=torch.int64)
    query = random(2, 2, 3, grad=True)
    if projected:
        inputs = (query, random(1, 4, 2, 3, grad=True), random(1, 4, 2, 2, grad=True))
        op = single_query_attention
    else:
        weights = (random(6, 3, grad=True), random(4, 3, grad=True), random(4, grad=True))
        inputs, op = (query, random(1, 4, 3, grad=True), *weights), single_query_attention_absorbed
    assert torch.autograd.gradcheck(lambda *tensors: op(*tensors, SCALE, exclude), inputs)


TOKENS = torch.zeros(2, 4, 3, 5)
INDICES = torch.zeros(2, 1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TOKENS[0, :1], TOKENS[0], TOKENS), "k must be"),
        ((TOKENS[:, :1], TOKENS, TOKENS[:, :3]), r"v must be \(B, N, h, dv\) = \(2, 4, 3, dv\)"),
        ((TOKENS[0, :1, :2], TOKENS, TOKENS), "query must be"),
        ((TOKENS[:1, :1], TOKENS, TOKENS), "query must be"),
        ((TOKENS[:, :1], TOKENS[:, :0], TOKENS[:, :0]), "at least one key"),
        ((TOKENS[:, :1], TOKENS, TOKENS, 1.0, INDICES[:1]), "exclude must be"),
        ((TOKENS[:, :1], TOKENS, TOKENS, 1.0, INDICES.float()), "int32 or int64"),
        (
            (TOKENS[:, :1], TOKENS, TOKENS, 1.0, INDICES.expand(2, 4)),
            "must leave at least one of the N = 4",
        ),
    ],
)
def test_bad_arguments_of_the_projected_form_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        single_query_attention(*arguments, *(() if len(arguments) > 3 else (1.0,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 4)}, "x must be"),
        ({"query": torch.zeros(3)}, "query must be"),
        ({"key_weight": torch.zeros(14, 6)}, r"key_weight must be \(h \* d, C\) = \(15, 6\)"),
        ({"value_weight": torch.zeros(14, 6)}, "value_weight must be"),
        ({"value_bias": torch.zeros(14)}, r"value_bias must be \(15,\)"),
        ({"exclude": INDICES[:1]}, "exclude must be"),
    ],
)
def test_bad_arguments_of_the_absorbed_form_are_named(changes, message):
    arguments = {
        "query": torch.zeros(1, 3, 5),
        "x": torch.zeros(2, 4, 6),
        "key_weight": torch.zeros(15, 6),
        "value_weight": torch.zeros(15, 6),
        "value_bias": torch.zeros(15),
        "scale": 1.0,
        "exclude": None,
    }
    with pytest.raises(ValueError, match=message):
        single_query_attention_absorbed(**{**arguments, **changes})
