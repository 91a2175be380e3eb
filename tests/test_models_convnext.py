"""ConvNeXt: published counts, its block by hand, and what a user does."""

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
from python_ref.models.convnext import ConvNeXtBlock
from python_ref.published import mscsa_baselines

small = partial(create_model, "convnext_t", depths=(1, 1, 2, 1), widths=(16, 24, 32, 48))
ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("convnext")]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_counts_equal_the_published_ones(row):
    check_row(row)


@pytest.mark.parametrize(("batch", "size"), [(1, (224, 224)), (2, RAGGED), (2, (1, 1))])
def test_forward_and_backward_at_any_size(batch, size):
    check_trains(partial(create_model, "convnext_t") if batch == 1 else small, batch, size)


@pytest.mark.parametrize(
    "options", [{"layer_scale": 1.0}, {"drop_path": 0.5}, {"in_chans": 1}], ids="-".join
)
def test_every_option_trains(options):
    check_trains(partial(small, **options), 2, (50, 36), options.get("in_chans", 3))


def test_features_of_whole_patches():
    check_features(small, (64, 96), (0, 2, 3))


@pytest.mark.parametrize("size", [RAGGED, (45, 2)])
def test_pixels_beyond_the_last_whole_patch_are_dropped(size):
    model = small(features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    expected = [tuple(max(1, side // stride) for side in size) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape[2:]) for m in maps] == expected


def test_returned_maps_are_normalised_and_no_other():
    """A dense head sees normalised maps; a norm of a map that nobody sees would not train."""
    model = small(features_only=True, out_indices=(1, 3)).eval()
    assert list(model.norms) == ["1", "3"]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 64))
    for x in maps:
        torch.testing.assert_close(x.mean(dim=1), torch.zeros(1, *x.shape[2:]), atol=1e-5, rtol=0)


def test_no_classes_gives_pooled_features():
    check_pooled_features(small)


def test_state_dict_round_trip_and_deterministic_eval(tmp_path):
    check_round_trip(small, tmp_path)


def test_batches_do_not_mix_in_eval():
    check_batches_do_not_mix(small)


def test_compiled_model_equals_eager():
    check_compiles(small)


def test_block_is_a_scaled_residual_of_a_large_stencil_and_two_linear_layers():
    torch.manual_seed(0)
    block = ConvNeXtBlock(6, 0.5, 0.0).double()
    x = torch.randn(2, 5, 9, 6, dtype=torch.float64)
    taps = F.pad(x, (0, 0, 3, 3, 3, 3)).unfold(1, 7, 1).unfold(2, 7, 1)
    y = torch.einsum("bhwcij,cij->bhwc", taps, block.depthwise.weight[:, 0]) + block.depthwise.bias
    y = F.layer_norm(y, (6,), eps=1e-6)
    y = block.mlp.project(F.gelu(block.mlp.expand(y)))
    torch.testing.assert_close(block(x), x + 0.5 * y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 1, 1, 1)}, "no option 'layers'; .*depths, layer_scale"),
        ({"out_indices": (4,)}, r"out_indices must be in 0\.\.3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model("convnext_t", **options)
