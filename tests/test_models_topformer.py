"""TopFormer: published counts, the pyramid and its transformer, and what a user does with it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_checks import (
    RAGGED,
    check_batches_do_not_mix,
    check_compiles,
    check_features,
    check_pooled_features,
    check_round_trip,
    check_row,
    check_trains,
    row_id,
)

from python_ref.models import create_model
from python_ref.models.topformer import PyramidAttention
from python_ref.published import mscsa_baselines

tiny = partial(create_model, "topformer_t")
small = partial(tiny, depth=1)
ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("topformer")]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_counts_equal_the_published_ones(row):
    check_row(row)


@pytest.mark.parametrize(
    ("name", "batch", "size"),
    [
        ("topformer_t", 2, (224, 224)),
        ("topformer_b", 2, (64, 64)),
        ("topformer_t", 2, RAGGED),
        ("topformer_t", 2, (1, 1)),
    ],
)
def test_forward_and_backward_at_any_size(name, batch, size):
    check_trains(partial(create_model, name), batch, size)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 2},
        {"head_dim": 12},
        {"value_ratio": 1},
        {"mlp_ratio": 1},
        {"stem": 8},
        {"taps": (1, 5, 7, 9)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_trains(options):
    check_trains(partial(small, **options), 2, (50, 36), options.get("in_chans", 3))


@pytest.mark.parametrize("size", [(64, 96), RAGGED, (33, 2)])
def test_features_have_rounded_up_sizes(size):
    check_features(tiny, size, (0, 2, 3))


def test_levels_carry_the_stride_of_their_tap():
    model = tiny(features_only=True, taps=(1, 4, 7, 9))
    assert [info.stride for info in model.feature_info] == [2, 8, 16, 32]
    check_features(partial(tiny, taps=(1, 4, 7, 9)), RAGGED, (0, 1))


@pytest.mark.parametrize("size", [(64, 96), RAGGED, (33, 2)])
def test_levels_with_semantics_have_one_width(size):
    check_features(partial(small, inject_width=24), size, (1, 2, 3))


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


def test_no_classes_gives_pooled_features():
    check_pooled_features(small)


def test_state_dict_round_trip_and_deterministic_eval(tmp_path):
    check_round_trip(small, tmp_path)


def test_batches_do_not_mix_in_eval():
    check_batches_do_not_mix(small)


def test_compiled_model_equals_eager():
    check_compiles(small)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 7}, "no option 'windows'; .*bottlenecks"),
        ({"out_indices": (4,)}, r"out_indices must be in 0\.\.3"),
        ({"taps": (3, 5, 7, 8)}, "taps must increase and end at the last of the 9 bottlenecks"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model("topformer_t", **options)
