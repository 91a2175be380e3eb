"""Attention maps: gradients with respect to the values are the weights."""

import pytest
import torch
from reference_checks import TOLERANCE, random
from torch import Tensor, nn

from python_ref.analysis import attention_maps
from python_ref.analysis.recording import grid_of
from python_ref.models import create_model
from python_ref.ops import REFERENCE


class Mixer(nn.Module):
    """A model that is a single call of an operator."""

    def __init__(self, op: str, *arguments: object) -> None:
        super().__init__()
        self.ops, self.op, self.arguments = REFERENCE, op, arguments

    def forward(self, image: Tensor) -> object:
        return getattr(self.ops, self.op)(*self.arguments)


# Every operator on a 6 x 4 image: the call, its values (rows, columns, h, d) per map that is
# found, and what the query at row 3, column 1 gets, (h, d).
def multiscale_case():
    ks, vs = [random(1, 24, 2, 3), random(1, 6, 2, 3)], [random(1, 24, 2, 5), random(1, 6, 2, 5)]
    mixer = Mixer("multiscale_attention", random(1, 24, 2, 3), ks, vs, 0.7)
    values = [vs[0].reshape(6, 4, 2, 5), vs[1].reshape(3, 2, 2, 5)]
    return mixer, values, lambda out: [out[0, 3 * 4 + 1]]


def class_token_case():
    q, k, v = (random(1, 25, 2, 3) for _ in range(3))
    mixer = Mixer("multiscale_attention", q, [k], [v], 0.7)
    weight = (0.7 * torch.einsum("hd,nhd->hn", q[0, 14], k[0])).softmax(dim=-1)[:, :1]
    without_class = lambda out: [out[0, 14] - weight * v[0, 0]]  # noqa: E731
    return mixer, [v[0, 1:].reshape(6, 4, 2, 3)], without_class


def atrous_case():
    qkv, bias = random(1, 6, 4, 2, 3, 2, 3), random(2, 25, 2)
    mixer = Mixer("atrous_attention", qkv, bias, (1, 2), 3, 0.7)
    return mixer, list(qkv[0, :, :, :, 2].unbind(dim=2)), lambda out: list(out[0, 3, 1])


def abstract_token_case():
    qkv, token = random(1, 6, 4, 3, 2, 3), random(3, 2, 3)
    token[2] = 0  # its share of the output is not on the map
    mixer = Mixer("abstract_token_fork", qkv, token, 3, 0.7, None)
    # The pixel, and the token of its window, the first one of the second row.
    return mixer, [qkv[0, :, :, 2]] * 2, lambda out: [out[0][0, 3, 1], out[1][0, 2]]


def token_fusion_case():
    kv, y = random(1, 6, 2, 2, 3), random(1, 24, 2, 3)
    mixer = Mixer("token_fusion", random(1, 24, 2, 3), kv, y, 0.7)
    pixel = 3 * 4 + 1
    return mixer, [kv[0, :, 1].unflatten(0, (3, 2))], lambda out: [out[0, pixel] - y[0, pixel]]


def conv_case():
    v = random(1, 6, 4, 6)
    mixer = Mixer("conv_attention", v, random(1, 3, 2, 2, 9, 9), 0.7)
    return mixer, [v[0].unflatten(-1, (2, 3))], lambda out: [out[0, 3, 1].unflatten(-1, (2, 3))]


def fused_conv_case():
    x, value_weight = random(1, 6, 4, 6), random(6, 6)
    weights = (random(3, 3, 6), random(162, 6), random(162), value_weight)
    mixer = Mixer("conv_attention_fused", x, *weights, 2, 0.7)
    values = (x[0] @ value_weight.T).unflatten(-1, (2, 3))
    return mixer, [values], lambda out: [out[0, 3, 1].unflatten(-1, (2, 3))]


def learned_query_case():
    v = random(1, 24, 2, 3)
    arguments = (random(2, 2, 3), random(1, 24, 2, 3), v, 0.7, torch.tensor([[0, 7]]))
    mixer = Mixer("single_query_attention", *arguments)
    return mixer, [v.reshape(6, 4, 2, 3)] * 2, lambda out: list(out[0])


def absorbed_query_case():
    x, key, value = random(1, 24, 6), random(6, 6), random(6, 6)
    arguments = (random(1, 2, 3), x, key, value, None, 0.7)
    mixer = Mixer("single_query_attention_absorbed", *arguments)
    values = (x[0] @ value.T).unflatten(-1, (2, 3)).unflatten(0, (6, 4))
    return mixer, [values], lambda out: list(out[0])


@pytest.mark.parametrize(
    "case",
    [
        multiscale_case,
        class_token_case,
        atrous_case,
        abstract_token_case,
        conv_case,
        fused_conv_case,
        learned_query_case,
        absorbed_query_case,
        token_fusion_case,
    ],
)
def test_attention_maps_times_values_are_the_output(case):
    torch.manual_seed(0)
    mixer, values, outputs_of = case()
    maps = attention_maps(mixer, torch.empty(1, 3, 48, 32), (3.5 / 6, 1.5 / 4))
    assert [m.weights.shape[1:] for m in maps] == [v.shape[:2] for v in values]
    assert all((m.weights >= 0).all() for m in maps)
    outputs = [
        torch.einsum("hrc,rchd->hd", m.weights, v) for m, v in zip(maps, values, strict=True)
    ]
    expected = outputs_of(mixer(torch.empty(0)))
    if len(expected) < len(outputs):  # the scales of one softmax
        outputs = [sum(outputs)]
    torch.testing.assert_close(outputs, expected, **TOLERANCE)


def test_attention_maps_follow_the_place():
    tokens = 10 * torch.eye(24).reshape(1, 24, 1, 24)
    mixer = Mixer("multiscale_attention", tokens, [tokens], [tokens], 1.0)
    for row, column in ((0, 0), (5, 3), (2, 1)):
        place = (row + 0.5) / 6, (column + 0.5) / 4
        (found,) = attention_maps(mixer, torch.empty(1, 3, 48, 32), place)
        assert found.weights[0].argmax() == row * 4 + column


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [
        ("emsnet_xxtiny", {"depths": (1, 1, 1, 1)}, 8),
        ("accvit_femto", {"layers": (1, 1, 1, 1)}, 10),
        ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}, 4),
        ("swin_t", {"depths": (2, 1, 1, 1)}, 4),  # the second has shifted windows
    ],
)
def test_attention_maps_of_a_model(name, options, number):
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    maps = attention_maps(model, torch.randn(1, 3, 64, 64), (0.4, 0.6))
    assert len(maps) == number
    assert all((m.weights.flatten(1).sum(dim=1) > 0.1).all() for m in maps)


@pytest.mark.parametrize(
    ("shape", "size", "grid"),
    [
        ((49,), (224, 224), (7, 7, 0)),
        ((50,), (224, 224), (7, 7, 1)),
        ((54,), (224, 224), None),  # 25 + 16 + 9 + 4, four pooled maps
        ((24,), (48, 32), (6, 4, 0)),
        ((19, 26), (75, 101), (19, 26, 0)),
        ((18, 25), (75, 101), (18, 25, 0)),
        ((3, 25), (96, 96), None),
        ((1,), (224, 224), (1, 1, 0)),
    ],
)
def test_tokens_are_a_grid_only_if_the_image_has_it(shape, size, grid):
    assert grid_of(shape, size) == grid


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: attention_maps(m, torch.empty(2, 3, 48, 32)), "image must be"),
        (lambda m: attention_maps(m, torch.empty(1, 3, 48, 32), (0.5, 1.0)), "place must be"),
        (
            lambda m: attention_maps(nn.Identity(), torch.empty(1, 3, 48, 32)),
            "no attention between",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(multiscale_case()[0])
