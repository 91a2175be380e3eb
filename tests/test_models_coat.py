"""CoaT: published counts, factorised attention, and what a user does with the models."""

from functools import partial

import pytest
import torch
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
from python_ref.models.coat import ConvAttention, RelativePosition
from python_ref.published import mscsa_baselines

small = partial(
    create_model, "coat_tiny", depths=(1, 1, 1, 1), parallel_depth=1, widths=(32, 32, 32, 32)
)
ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("coat")]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_counts_equal_the_published_ones(row):
    check_row(row)


@pytest.mark.parametrize(("batch", "size"), [(1, (224, 224)), (2, RAGGED), (2, (1, 1))])
def test_forward_and_backward_at_any_size(batch, size):
    check_trains(partial(create_model, "coat_tiny") if batch == 1 else small, batch, size)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 4, "windows": ((3, 1), (5, 3))},
        {"mlp_ratio": 2},
        {"parallel_depth": 2},
        {"drop_path": 0.5},
        {"in_chans": 1},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_trains(options):
    check_trains(partial(small, **options), 2, (50, 36), options.get("in_chans", 3))


@pytest.mark.parametrize("options", [{}, {"parallel_depth": 0, "widths": (16, 32, 40, 48)}])
@pytest.mark.parametrize("size", [(64, 96), (2, 1)])
def test_features_have_rounded_up_sizes(options, size):
    check_features(partial(small, **options), size, (0, 2, 3))


def test_no_classes_gives_pooled_features():
    check_pooled_features(small)


def test_state_dict_round_trip_and_deterministic_eval(tmp_path):
    check_round_trip(small, tmp_path)


def test_batches_do_not_mix_in_eval():
    check_batches_do_not_mix(small)


def test_compiled_model_equals_eager():
    check_compiles(small)


def test_factorised_attention_averages_values_by_one_softmax_over_tokens():
    torch.manual_seed(0)
    attention = ConvAttention(8, 2).double()
    position = RelativePosition(4, ((3, 1), (5, 1))).double()
    tokens = torch.randn(2, 1 + 3 * 4, 8, dtype=torch.float64)
    query, key, value = attention.qkv(tokens).reshape(2, 13, 3, 2, 4).permute(2, 0, 3, 1, 4)
    # The (N x N) weights of ordinary attention, which the layer never forms.
    weights = 0.5 * torch.einsum("bhnd,bhmd->bhnm", query, key.softmax(dim=2))
    out = (weights @ value).transpose(1, 2).flatten(2)
    image = value[:, :, 1:].transpose(2, 3).reshape(2, 8, 3, 4)
    convolved = position(image.permute(0, 2, 3, 1)).flatten(1, 2)
    out[:, 1:] += query.transpose(1, 2).flatten(2)[:, 1:] * convolved
    expected = attention.project(out)
    torch.testing.assert_close(
        attention(tokens, position, (3, 4)), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, "no option 'window'; .*parallel_depth"),
        ({"heads": 7}, r"heads must divide the widths \(152, 152, 152, 152\), got 7"),
        ({"windows": ((3, 8), (5, 1))}, "windows must share out 8 heads"),
        ({"depths": (1, 1)}, "depths must have one entry for each of the 4 stages"),
        ({"widths": (152, 152, 152, 320)}, "the last three widths must be equal"),
        ({"out_indices": (4,)}, r"out_indices must be in 0\.\.3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model("coat_tiny", **options)
