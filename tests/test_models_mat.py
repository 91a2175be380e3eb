"""MAT: published counts, attention by hand, and what a user does with the models."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from model_suite import ModelSuite
from torch import Tensor

from python_ref.models import create_model
from python_ref.models.mat import PURE_MLP, VARIANTS, AbstractTokenAttention, BilinearEmbed
from python_ref.published import mat
from python_ref.published.row import Row

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class TestMAT(ModelSuite):
    whole = "mat_1"
    small = {"width": 16, "depths": (1, 1, 1, 1), "head_dim": 8}
    rows = mat.ROWS
    options = (
        {"mixers": ("none", "none", "window", "window")},
        {"mixers": ("abstract",) * 4},
        PURE_MLP,
        {"embed": "conv"},
        {"embed": "merge"},
        {"window": 3},
        {"abstract_proj": "proj"},
        {"mask_pad": False},
        {"head_dim": 4},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_options = ({"embed": "bilinear"}, {"embed": "conv"}, {"embed": "merge"})
    compiled_options = ({"depths": (0, 0, 1, 0), "window": 2},)
    refused = [
        ({"windows": 7}, "no option 'windows'; .*abstract_proj"),
        ({"mixers": ("none",) * 3}, "mixers must have one entry for each of the 4 stages"),
        ({"mixers": ("conv",) * 4}, "mixers must be .*, got 'conv'"),
        ({"embed": "pool"}, "embed must be one of bilinear, conv, merge, got 'pool'"),
        ({"head_dim": 7}, "head_dim must divide width = 24, got 7"),
        ({"abstract_proj": "none"}, "abstract_proj must be"),
    ]


small = partial(create_model, "mat_1", **TestMAT.small)


# Billions of another implementation of the same reading, in the order of the rows.
FVCORE = [0.3898, 0.6665, 1.0434, 1.9345, 3.1573, 0.7839, 0.7079, 0.5684, 0.4611, 0.6595, 0.7038]
FVCORE += [0.6804]
TORCH = [0.3849, 0.6600, 1.0353, 1.9227, 3.1430]


def test_operations_equal_those_of_fvcore():
    assert [round(row.count().operations / 1e9, 4) for row in mat.ROWS] == FVCORE


def test_multiply_accumulates_equal_those_of_torch():
    assert [round(row.count().macs / 1e9, 4) for row in mat.ROWS[:5]] == TORCH


def test_projecting_the_abstract_token_overshoots_the_published_operations():
    rows = [Row("", f"mat_{i}", {"abstract_proj": "proj"}, convention="fvcore") for i in (2, 5)]
    assert [round(row.count().operations / 1e9, 3) for row in rows] == [0.668, 3.165]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_parameters_follow_the_formula(name):
    config = VARIANTS[name]
    width = config.width
    widths = [width * 2**i for i in range(4)]
    blocks = zip(config.depths, config.mixers, widths, strict=True)
    expected = 4.5 * width**2 + 24 * width  # stem
    expected += sum(2 * c**2 + 27 * c for c in widths[:3])  # patch embeddings
    expected += sum(
        depth * (8 * c**2 + 47 * c + (10 * c**2 + 23 * c) * (mixer == "abstract"))
        for depth, mixer, c in blocks
    )
    expected += 30 * width + 8 * width * 1280 + 3 * 1280 + 1280 * 1000 + 1000
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == expected


def random_attention(**options: object) -> AbstractTokenAttention:
    torch.manual_seed(0)
    attention = AbstractTokenAttention(12, 3, 4, **options).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Packed (..., tokens, 3C) -> (..., tokens, C) by the framework."""
    query, key, value = rearrange(qkv, "... n (three h d) -> three ... h n d", three=3, h=heads)
    out = F.scaled_dot_product_attention(query, key, value)
    return rearrange(out, "... h n d -> ... n (h d)")


@pytest.mark.parametrize("abstract_proj", ["raw", "proj"])
def test_attention_equals_the_equations(abstract_proj):
    """Eq. 4.1 to 4.5 on windows that tile, with the token concatenated to every window."""
    attention = random_attention(abstract_proj=abstract_proj)
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    token = attention.token
    packed = token.repeat(3) if abstract_proj == "raw" else attention.qkv(token)
    qkv = attention.qkv(x)
    windows = rearrange(qkv, "b (u i) (v j) c -> b (u v) (i j) c", i=4, j=4)
    rows = torch.cat([packed.expand(2, 6, 1, -1), windows], dim=2)
    out = attend(rows, 3)
    local = rearrange(out[:, :, 1:], "b (u v) (i j) c -> b (u i v j) c", u=2, i=4)
    mixed = attention.mix_project(attend(attention.mix_qkv(out[:, :, 0]), 3))
    key, value = attention.fuse_kv(mixed).chunk(2, dim=-1)
    heads = (
        rearrange(t, "b n (h d) -> b h n d", h=3) for t in (qkv[..., :12].flatten(1, 2), key, value)
    )
    read = rearrange(F.scaled_dot_product_attention(*heads), "b h n d -> b n (h d)")
    expected = attention.project(local + read).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, **TOLERANCE)


def test_padded_pixels_are_keys_only_if_they_are_not_masked():
    x = torch.randn(2, 6, 9, 12, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))
    seen = random_attention(mask_pad=False)
    torch.testing.assert_close(seen(x), seen(padded)[:, :6, :9], **TOLERANCE)
    masked = random_attention()
    assert (masked(x) - masked(padded)[:, :6, :9]).abs().max() > 1e-3


def test_one_attention_sees_the_whole_map():
    attention = random_attention()
    x = torch.randn(1, 9, 10, 12, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(attention(x)[0, 0, 0].sum(), x)
    assert grad.abs().amax(dim=-1).gt(0).all()


def test_the_only_window_of_a_small_map_gets_zero_gradients_where_softmax_is_constant():
    attention = random_attention()
    attention(torch.randn(2, 3, 4, 12, dtype=torch.float64)).square().sum().backward()
    assert not attention.mix_qkv.weight.grad[:24].any()
    assert attention.mix_qkv.weight.grad[24:].all()
    assert not attention.fuse_kv.weight.grad[:12].any()


def test_patch_embedding_begins_with_the_mean_of_two_by_two_pixels():
    embed = small().stages[1].embed
    assert isinstance(embed, BilinearEmbed)
    assert not embed.offset.weight.any()
    x = torch.randn(1, 6, 8, 16)
    sampled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2)
    expected = embed.expand(embed.depthwise(sampled)).permute(0, 2, 3, 1)
    torch.testing.assert_close(embed(x), expected)


def test_patch_embedding_learns_where_to_sample():
    embed = small().stages[1].embed
    embed(torch.randn(2, 7, 9, 16)).square().sum().backward()
    assert embed.offset.weight.grad.abs().max() > 1e-6


def test_blocks_without_mixer_have_no_position_encoding():
    model = small()
    blocks = [stage.blocks[0] for stage in model.stages]
    assert [block.mixer is None for block in blocks] == [True, True, False, False]
    assert [block.position is None for block in blocks] == [True, True, False, False]


def test_initialisation():
    torch.manual_seed(0)
    block = create_model("mat_2").stages[3].blocks[0]
    assert abs(block.mixer.token.std().item() - 0.02) < 0.004
    assert abs(block.mixer.qkv.weight.std().item() - 0.02) < 0.001
    assert not block.mixer.qkv.bias.any()
    assert abs(block.position.depthwise.weight.std().item() - (2 / 9) ** 0.5) < 0.03
