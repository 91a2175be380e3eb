"""PVTv2: published counts, spatial-reduction attention by hand, and what a user does."""

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
from torch import Tensor

from python_ref.models import create_model
from python_ref.models.pvt_v2 import SpatialReductionAttention
from python_ref.published import mscsa_baselines

small = partial(create_model, "pvt_v2_b0", depths=(1, 1, 2, 1), widths=(16, 32, 40, 64))
ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("pvt")]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_counts_equal_the_published_ones(row):
    check_row(row)


@pytest.mark.parametrize(("batch", "size"), [(1, (224, 224)), (2, RAGGED), (2, (1, 1))])
def test_forward_and_backward_at_any_size(batch, size):
    check_trains(partial(create_model, "pvt_v2_b0") if batch == 1 else small, batch, size)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": (2, 2, 4, 4)},
        {"mlp_ratios": (2, 2, 2, 2)},
        {"reductions": (4, 2, 1, 1)},
        {"drop_path": 0.5},
        {"in_chans": 1},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_trains(options):
    check_trains(partial(small, **options), 2, (50, 36), options.get("in_chans", 3))


@pytest.mark.parametrize("size", [(64, 96), RAGGED, (2, 2)])
def test_features_have_rounded_up_sizes(size):
    check_features(small, size, (0, 2, 3))


def test_no_classes_gives_pooled_features():
    check_pooled_features(small)


def test_state_dict_round_trip_and_deterministic_eval(tmp_path):
    check_round_trip(small, tmp_path)


def test_batches_do_not_mix_in_eval():
    check_batches_do_not_mix(small)


def test_compiled_model_equals_eager():
    check_compiles(small)


def heads(x: Tensor, number: int) -> Tensor:
    """(B, H, W, C) -> (B, h, H * W, d)."""
    return x.flatten(1, 2).unflatten(-1, (number, -1)).transpose(1, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
@pytest.mark.parametrize("side", [1, 3])
def test_pixels_attend_to_the_whole_patches_of_the_map(size, side):
    torch.manual_seed(0)
    attention = SpatialReductionAttention(16, 4, side).double()
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    tokens = x
    if side > 1:
        whole = x[:, : size[0] // side * side, : size[1] // side * side]
        patches = whole.unflatten(1, (-1, side)).unflatten(3, (-1, side))
        conv = attention.reduce.conv
        tokens = torch.einsum("bhiwjc,dcij->bhwd", patches, conv.weight) + conv.bias
        tokens = F.layer_norm(tokens, (16,), eps=1e-5)
    key, value = attention.key_value(tokens).chunk(2, dim=-1)
    out = F.scaled_dot_product_attention(*(heads(t, 4) for t in (attention.query(x), key, value)))
    expected = attention.project(out.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 7}, "no option 'windows'; .*reductions"),
        ({"heads": (1, 2, 5, 7)}, "heads must divide dim = 256, got 7"),
        ({"out_indices": (4,)}, r"out_indices must be in 0\.\.3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model("pvt_v2_b0", **options)
