"""TopFormer: published counts, the pyramid and its transformer, and what a user does with it."""

from functools import partial

import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
    check_features,
)
from model_suite import ModelSuite

from python_ref.models import create_model
from python_ref.models.topformer import PyramidAttention
from python_ref.published import mscsa_baselines

ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("topformer")]


class TestTopFormer(ModelSuite):
    whole = "topformer_t"
    names = ("topformer_t", "topformer_b")
    small = {"depth": 1}
    rows = ROWS
    options = (
        {"heads": 2},
        {"head_dim": 12},
        {"value_ratio": 1},
        {"mlp_ratio": 1},
        {"stem": 8},
        {"taps": (1, 5, 7, 9)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    )
    features_options = ({}, {"inject_width": 24})
    features_sizes = ((64, 96), RAGGED, (33, 2))
    refused = [
        ({"windows": 7}, "no option 'windows'; .*bottlenecks"),
        ({"taps": (3, 5, 7, 8)}, "taps must increase and end at the last of the 9 bottlenecks"),
    ]


small = partial(create_model, "topformer_t", depth=1)


def test_levels_carry_the_stride_of_their_tap():
    model = small(features_only=True, taps=(1, 4, 7, 9))
    assert [info.stride for info in model.feature_info] == [2, 8, 16, 32]
    check_features(partial(small, taps=(1, 4, 7, 9)), RAGGED, (0, 1))


def test_semantics_of_half_the_last_size_are_injected_into_every_level():
    torch.manual_seed(0)
    model = small(inject_width=24, features_only=True).double().eval()
    image = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    levels = model.pyramid(image)
    pooled = torch.cat([F.adaptive_avg_pool2d(level, (2, 3)) for level in levels], dim=1)
    semantics = model.extractor.blocks(pooled).split([16, 32, 64, 96], dim=1)
    for fused, level, g, layer in zip(
        model(image), levels, semantics, model.injections.values(), strict=True
    ):
        up = partial(F.interpolate, size=level.shape[2:], mode="bilinear")
        gate = up(F.relu6(layer.weight(g) + 3) / 6)
        expected = layer.local(level) * gate + up(layer.offset(g))
        torch.testing.assert_close(fused, expected, atol=1e-12, rtol=1e-10)


def test_scores_of_the_pyramid_are_not_scaled():
    torch.manual_seed(0)
    attention = PyramidAttention(12, 3, 4, 2).double().eval()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    query, key, value = (
        conv(x).flatten(2).unflatten(1, (3, -1))
        for conv in (attention.query, attention.key, attention.value)
    )
    out = F.scaled_dot_product_attention(query.mT, key.mT, value.mT, scale=1.0)
    expected = attention.project(F.relu6(out.mT.reshape(2, 24, 3, 5)))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)
