"""ResNet: published counts, the residual block by hand, and what a user does."""

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
from python_ref.models.resnet import ResidualBlock
from python_ref.published import mscsa_baselines

small = partial(create_model, "resnet50", depths=(1, 1, 2, 1), hidden=(8, 16, 24, 32), stem=16)
ROWS = [row for row in mscsa_baselines.ROWS if row.model.startswith("resnet")]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_counts_equal_the_published_ones(row):
    check_row(row)


@pytest.mark.parametrize(
    ("build", "batch", "size"),
    [
        (partial(create_model, "resnet18"), 2, (224, 224)),
        (small, 2, RAGGED),
        (partial(small, bottleneck=False), 2, RAGGED),
        (small, 3, (1, 40)),
    ],
    ids=["resnet18", "bottlenecks", "basic blocks", "one row"],
)
def test_forward_and_backward_at_any_size(build, batch, size):
    check_trains(build, batch, size)


@pytest.mark.parametrize("options", [{"drop_path": 0.5}, {"in_chans": 1}], ids="-".join)
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


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    block = ResidualBlock(16, 8, 32, 2, bottleneck=True, drop_path=0.0)
    assert [layer.conv.stride for layer in block.residual] == [(1, 1), (2, 2), (1, 1)]
    assert block.shortcut.conv.stride == (2, 2)


def test_a_silent_residual_leaves_the_rectified_input():
    """The last norm scales the residual branch; nothing but ReLU follows the sum."""
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, 8, 1, bottleneck=False, drop_path=0.0).eval()
    torch.nn.init.zeros_(block.residual[-1].norm.weight)
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 1, 1, 1)}, "no option 'layers'; .*depths, bottleneck"),
        ({"out_indices": (4,)}, r"out_indices must be in 0\.\.3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model("resnet50", **options)
