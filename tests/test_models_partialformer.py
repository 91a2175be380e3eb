"""PartialFormer: published counts, partial attention by hand, and what a user does."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from model_checks import (
    RAGGED,
)
from model_suite import ModelSuite
from torch import Tensor

from python_ref.models import create_model
from python_ref.models.partialformer import ALTERNATIVE_B, VARIANTS, PartialAttention, SelfAttention
from python_ref.published import partialformer
from python_ref.published.row import Row

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
NAMES = [f"partialformer_b{i}" for i in range(5)]


class TestPartialFormer(ModelSuite):
    whole = "partialformer_b0"
    small = {"width": 16, "depths": (1, 1, 1, 1), "heads": (2, 2, 4, 4)}
    rows = partialformer.ROWS
    sizes = (RAGGED,)  # a map of one pixel has no background, whose parameters get no gradient
    options = (
        {"ratios": (16, 8, 2, 2)},
        {"expansion": 1},
        {"squeeze": 2},
        ALTERNATIVE_B,
        {"score": "post_norm"},
        {"bg_inner_residual": False},
        {"absorbed": True},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_sizes = ((64, 96), RAGGED, (2, 2), (1, 1))
    compiled_options = tuple({"depths": (0, 1, 0, 0), "absorbed": a} for a in (False, True))
    refused = [
        ({"rho": (64, 16, 4, 4)}, "no option 'rho'; .*ratios"),
        ({"ratios": (64, 16, 4)}, "ratios must have one entry for each of the 4 stages"),
        ({"ratios": (64, 16, 4, 0)}, "ratio must be at least 1, got 0"),
        ({"heads": (2, 4, 8, 7)}, "heads must divide dim = 192, got 7"),
        ({"score": "none"}, "score must be"),
        ({"stem": "patch"}, "middle must be 'depthwise' or 'full', got 'patch'"),
    ]


small = partial(create_model, "partialformer_b0", **TestPartialFormer.small)


def test_operations_equal_those_of_fvcore():
    found = [round(row.count().operations / 1e9, 3) for row in partialformer.ROWS[:5]]
    assert found == [0.424, 0.730, 1.934, 3.395, 6.876]


def test_multiply_accumulates_equal_those_of_torch():
    found = [round(row.count().macs / 1e9, 3) for row in partialformer.ROWS[:5]]
    assert found == [0.419, 0.722, 1.922, 3.378, 6.853]


def test_alternative_reading_has_its_counts():
    counts = [Row("", name, ALTERNATIVE_B, convention="fvcore").count() for name in NAMES]
    assert [round(c.parameters / 1e6, 2) for c in counts] == [5.28, 8.22, 21.03, 36.03, 64.40]
    assert [round(c.operations / 1e9, 3) for c in counts] == [0.421, 0.721, 1.921, 3.364, 6.749]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_follow_the_formula(name):
    config = VARIANTS[name]
    width = config.width
    widths = [width * 2**i for i in range(4)]
    expected = 6.75 * width**2 + 19.5 * width  # stem
    expected += sum(18 * c**2 + 6 * c for c in widths[:3])  # patch embeddings
    for depth, heads, c in zip(config.depths, config.heads, widths, strict=True):
        hidden = max(8, c // 32)
        update = 2 * c * hidden + 3 * hidden + c
        expected += depth * (12 * c**2 + 64 * c + 4 * heads**2 + 3 * heads + update)
    expected += 30 * width + 8 * width * 1280 + 3 * 1280 + 1_281_000
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_reading_tokens_directly_is_cheaper():
    rows = [Row("", "partialformer_b1", {"absorbed": absorbed}) for absorbed in (False, True)]
    projected, absorbed = (row.count() for row in rows)
    assert absorbed.parameters == projected.parameters
    assert absorbed.macs < 0.85 * projected.macs


def random_attention(ratio: int = 3, **options: object) -> PartialAttention:
    torch.manual_seed(0)
    attention = PartialAttention(12, 3, ratio, **options).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def mix_heads(attention: PartialAttention, tokens: Tensor) -> Tensor:
    """Eq. 5.5 for tokens (B, M, C), heads as channels of 1x1 convolutions."""
    qkv = rearrange(attention.qkv(tokens), "b m (three h d) -> three b h m d", three=3, h=3)
    query, key, value = qkv
    scores = query @ key.mT / 2
    for layer, after in ((attention.mix_in, torch.softmax), (attention.mix_out, None)):
        scores = F.conv2d(scores, layer.weight[:, :, None, None], layer.bias)
        scores = scores if after is None else after(scores, dim=-1)
    return attention.project(rearrange(scores @ value, "b h m d -> b m (h d)"))


def by_shuffling(attention: PartialAttention, x: Tensor, residual: bool = True) -> Tensor:
    """Sort all tokens, cut, attend, put together and sort back: the text's order of steps."""
    tokens = attention.norm(x).flatten(1, 2)
    number = tokens.shape[1]
    chosen = max(1, number // attention.ratio)
    order = x.flatten(1, 2).mean(dim=-1).argsort(dim=1, descending=True)
    shuffled = torch.stack([image[o] for image, o in zip(tokens, order, strict=True)])
    foreground, background = shuffled[:, :chosen], shuffled[:, chosen:]
    token = attention.token.expand(len(x), 1, -1)
    out = mix_heads(attention, torch.cat([token, foreground], dim=1))
    query, foreground = out[:, :1], out[:, 1:]
    if number > chosen:
        heads = [
            rearrange(t, "b n (h d) -> b h n d", h=3)
            for t in (query, *attention.qkv(background).chunk(3, dim=-1)[1:])
        ]
        read = F.scaled_dot_product_attention(*heads).flatten(1)
        update = attention.update(read)[:, None]
        background = background * residual + update
    shuffled = torch.cat([foreground, background], dim=1)
    back = order.argsort(dim=1)
    return torch.stack([image[o] for image, o in zip(shuffled, back, strict=True)]).reshape(x.shape)


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("size", "ratio"), [((4, 6), 3), ((3, 5), 4), ((2, 2), 1), ((1, 1), 4)])
def test_attention_equals_shuffling_the_tokens(size, ratio, residual, absorbed):
    attention = random_attention(ratio, bg_inner_residual=residual, absorbed=absorbed)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x), by_shuffling(attention, x, residual), **TOLERANCE)


def test_both_ways_to_read_the_background_have_the_same_gradients():
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    grads = []
    for absorbed in (False, True):
        attention = random_attention(absorbed=absorbed)
        attention(x).square().sum().backward()
        grads.append([parameter.grad for parameter in attention.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_biases_that_shift_whole_rows_of_scores_get_no_gradient():
    attention = random_attention()
    attention(torch.randn(2, 4, 5, 12, dtype=torch.float64)).square().sum().backward()
    assert attention.mix_in.bias.grad.abs().max() < 1e-10
    assert attention.qkv.bias.grad[12:24].abs().max() < 1e-10
    assert attention.qkv.bias.grad[:12].abs().max() > 1e-3


def test_after_an_initial_norm_all_scores_are_rounding():
    attention = PartialAttention(64, 4, 4)
    means = attention.norm(torch.randn(1, 100, 64)).mean(dim=-1)
    assert means.abs().max() < 1e-6


def choices_of(mixer: PartialAttention) -> list[Tensor]:
    """A list that every further choice of foreground tokens is appended to."""
    choices, table = [], mixer.ops

    def remember(u: Tensor, n: int) -> Tensor:
        choices.append(table.context_topk(u, n))
        return choices[-1]

    mixer.ops = replace(table, context_topk=remember)
    return choices


@pytest.mark.parametrize("score", ["pre_norm", "post_norm"])
def test_score_is_taken_where_it_says(score):
    """What is added to all channels of a token alike counts before the norm, not after it."""
    attention = random_attention(4, score=score)
    choices = choices_of(attention)
    x = torch.randn(1, 1, 8, 12, dtype=torch.float64)
    attention(x)
    background = next(i for i in range(8) if i not in choices[0])
    x[0, 0, background] += 100
    attention(x)
    assert (background in choices[1]) == (score == "pre_norm")


def test_number_of_foreground_tokens_rounds_down_to_at_least_one():
    model = create_model("partialformer_b0", depths=(1, 1, 1, 1)).eval()
    choices = [choices_of(stage.blocks[0].mixer) for stage in model.stages]
    with torch.no_grad():
        for side in (224, 32):
            model(torch.randn(1, 3, side, side))
    numbers = [[index.shape[1] for index in stage] for stage in choices]
    assert numbers == [[49, 1], [49, 1], [49, 1], [12, 1]]


def test_alternative_reading_attends_to_all_tokens_in_the_last_stage():
    mixer = small(**ALTERNATIVE_B).stages[3].blocks[0].mixer.double()
    assert isinstance(mixer, SelfAttention)
    x = torch.randn(2, 3, 5, 128, dtype=torch.float64)
    qkv = mixer.qkv(mixer.norm(x)).flatten(1, 2)
    heads = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=4)
    out = rearrange(F.scaled_dot_product_attention(*heads), "b h n d -> b n (h d)")
    torch.testing.assert_close(mixer(x), mixer.project(out).reshape(x.shape), **TOLERANCE)
