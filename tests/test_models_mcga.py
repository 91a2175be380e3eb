"""MCGA: published counts, attention by hand, and what a user does with the model."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from model_suite import ModelSuite
from torch import Tensor

from python_ref.models import create_model
from python_ref.models.mcga import VARIANTS, MCGAttention
from python_ref.published import mcga
from python_ref.published.row import Row

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class TestMCGA(ModelSuite):
    whole = "mcga"
    small = {"widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (2, 2, 4, 4)}
    rows = mcga.ROWS
    options = (
        {"groups": 4},
        {"scale": "width"},
        {"fuse": "proj_sum"},
        {"stem": "conv"},
        {"mixer_ratio": 1},
        {"mixer_norm": False},
        {"query_bias": False},
        {"absorbed": True},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_options = ({"stem": "patch"}, {"stem": "conv"})
    compiled_options = tuple({"depths": (0, 1, 0, 0), "absorbed": a} for a in (False, True))
    refused = [
        ({"mixer": "mlp"}, "no option 'mixer'; .*mixer_ratio"),
        ({"depths": (2, 2)}, "depths must have one entry for each of the 4 stages"),
        ({"heads": (2, 2, 4, 7)}, "heads must divide dim = 256, got 7"),
        ({"scale": "depth"}, "scale must be"),
        ({"fuse": "cat"}, "fuse must be"),
        ({"stem": "full"}, "stem must be 'patch' or 'conv', got 'full'"),
    ]


@pytest.mark.parametrize(
    ("options", "parameters", "fvcore"),
    [
        ({}, 10_358_910, 0.664),
        ({"fuse": "proj_sum"}, 10_358_910, 0.711),
        ({"stem": "conv"}, 10_363_944, 0.686),
        ({"mixer_ratio": 1, "mixer_norm": False, "query_bias": False}, 10_342_398, None),
    ],
    ids=str,
)
def test_readings_have_their_counts(options, parameters, fvcore):
    counted = Row("", "mcga", options, convention="fvcore").count()
    assert counted.parameters == parameters
    assert fvcore is None or round(counted.operations / 1e9, 3) == fvcore


def test_multiply_accumulates_equal_those_of_torch():
    assert round(mcga.ROWS[0].count().macs / 1e9, 3) == 0.657


def test_parameters_follow_the_formula():
    config = VARIANTS["mcga"]
    widths = config.widths
    expected = 342  # stem
    expected += sum(10 * c + 2 * c * c + 6 * c for c in widths[:3])  # patch embeddings
    expected += sum(
        depth * (17 * c**2 + 64 * c + 552) for depth, c in zip(config.depths, widths, strict=True)
    )
    expected += 960 + 256 * 1280 + 3 * 1280 + 1_281_000
    with torch.device("meta"):
        model = create_model("mcga")
    assert sum(p.numel() for p in model.parameters()) == expected


def random_attention(**options: object) -> MCGAttention:
    """Weights large enough for groups and pixels to differ."""
    torch.manual_seed(0)
    attention = MCGAttention(12, 3, **options).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def attend(query: Tensor, key_value: Tensor, scale: float) -> Tensor:
    """Tokens (B, N, C) and packed (B, M, 2C) -> (B, N, C) by the framework."""
    heads = (
        rearrange(t, "b n (h d) -> b h n d", h=3) for t in (query, *key_value.chunk(2, dim=-1))
    )
    out = F.scaled_dot_product_attention(*heads, scale=scale)
    return rearrange(out, "b h n d -> b n (h d)")


@pytest.mark.parametrize("scale", ["head", "width"])
@pytest.mark.parametrize("fuse", ["sum_proj", "proj_sum"])
@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (3, 1)])
def test_attention_equals_the_equations(size, absorbed, fuse, scale):
    attention = random_attention(absorbed=absorbed, fuse=fuse, scale=scale)
    factor = {"head": 4, "width": 12}[scale] ** -0.5
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    tokens, nchw = x.flatten(1, 2), x.permute(0, 3, 1, 2)
    query = attention.query(attention.tokens).expand(2, -1, -1)
    groups = attention.project_groups(attend(query, attention.key_value(tokens), factor))
    mixer = attention.mixer
    hidden = F.gelu(mixer.expand(mixer.norm(groups).transpose(1, 2)))
    groups = groups + mixer.project(hidden).transpose(1, 2)
    branches = [
        attend(conv(nchw).flatten(2).transpose(1, 2), layer(groups), factor)
        for conv, layer in (
            (attention.conv3, attention.key_value3),
            (attention.conv5, attention.key_value5),
        )
    ]
    if fuse == "sum_proj":
        expected = attention.projections[0](branches[0] + branches[1])
    else:
        pairs = zip(attention.projections, branches, strict=True)
        expected = sum(project(branch) for project, branch in pairs)
    torch.testing.assert_close(attention(x), expected.reshape(x.shape), **TOLERANCE)


def test_both_ways_to_pool_have_the_same_gradients():
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    grads = []
    for absorbed in (False, True):
        attention = random_attention(absorbed=absorbed)
        attention(x).square().sum().backward()
        grads.append([parameter.grad for parameter in attention.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_key_biases_shift_whole_rows_of_scores_and_get_no_gradient():
    attention = random_attention()
    attention(torch.randn(2, 4, 5, 12, dtype=torch.float64)).square().sum().backward()
    for layer in (attention.key_value, attention.key_value3, attention.key_value5):
        assert layer.bias.grad[:12].abs().max() < 1e-10
        assert layer.bias.grad[12:].abs().max() > 1e-3


def test_one_attention_sees_the_whole_map():
    attention = random_attention()
    x = torch.randn(1, 9, 10, 12, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(attention(x)[0, 0, 0].sum(), x)
    assert grad.abs().amax(dim=-1).gt(0).all()


def test_initialisation():
    torch.manual_seed(0)
    block = create_model("mcga").stages[3].blocks[0]
    for weight in (block.mixer.tokens, block.mixer.query.weight, block.mlp.expand.weight):
        assert abs(weight.std().item() - 0.02) < 0.001
    assert not block.mixer.conv5.bias.any()
    assert abs(block.mixer.conv5.weight.std().item() - (2 / 25) ** 0.5) < 0.02
