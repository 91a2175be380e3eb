"""The suite of a family of backbones: a few attributes in, every property that models promise out.

class TestMAT(ModelSuite):
    whole = "mat_1"
    small = {"width": 16, "depths": (1, 1, 1, 1), "head_dim": 8}
    rows = mat.ROWS
"""

from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch
from model_checks import (
    RAGGED,
    Build,
    check_batches_do_not_mix,
    check_compiles,
    check_features,
    check_folds,
    check_lists_its_ops,
    check_pooled_features,
    check_round_trip,
    check_row,
    check_trains,
    row_id,
)

from python_ref.models import create_model
from python_ref.published import Row

Options = Mapping[str, object]


def pytest_parameters(suite: type["ModelSuite"], metafunc: pytest.Metafunc) -> None:
    """Fill in ``row``, ``name``, ``size``, ``options`` and the like (see conftest)."""
    values = {
        "row": (suite.rows, row_id),
        "name": (suite.names or (suite.whole,), str),
        "size": (suite.sizes, _size_id),
        "options": (suite.options, _options_id),
        "features_size": (suite.features_sizes, _size_id),
        "features_options": (suite.features_options, _options_id),
        "compiled_options": (suite.compiled_options, _options_id),
    }
    for name, (choices, label) in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices, ids=label)
    if "message" in metafunc.fixturenames:
        ids = [_options_id(wrong) for wrong, _ in suite.refused]
        metafunc.parametrize(("wrong", "message"), suite.refused, ids=ids)


def _size_id(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _options_id(options: Options) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()).replace(" ", "") or "plain"


class ModelSuite:
    """Subclass it with what is particular to the family; every property below is then tested.

    Attributes:
        whole: the smallest variant, which trains at 224 x 224 as it is.
        small: options that make a variant so small that everything else is cheap.
        names: variants that differ in kind, tested when made small; `whole` unless given.
        rows: published figures.
        sizes: images, two at a time, on which small models train.
        options: each of them trains.
        features_options: models whose maps are compared with `feature_info`.
        features_sizes: images of which every stride rounds up.
        out_indices: stages that are asked for.
        compiled_options: models that are compiled.
        refused: options, and what the error says about them.
    """

    whole: str
    small: Options
    names: Sequence[str] = ()
    rows: Sequence[Row]
    sizes: Sequence[tuple[int, int]] = (RAGGED, (1, 1))
    options: Sequence[Options]
    features_options: Sequence[Options] = ({},)
    features_sizes: Sequence[tuple[int, int]] = ((64, 96), RAGGED, (2, 2))
    out_indices: Sequence[int] = (0, 2, 3)
    compiled_options: Sequence[Options] = ({},)
    refused: Sequence[tuple[Options, str]]

    def build(self, name: str | None = None, **options: object) -> Build:
        """A function that makes a small model."""
        return partial(create_model, name or self.whole, **{**self.small, **options})

    def test_counts_equal_the_published_ones(self, row):
        check_row(row)

    def test_the_whole_model_trains_at_its_size(self):
        check_trains(partial(create_model, self.whole), 1, (224, 224))

    def test_small_models_train_at_any_size(self, name, size):
        check_trains(self.build(name), 2, size)

    def test_every_option_trains(self, options):
        check_trains(self.build(**options), 2, (50, 36), options.get("in_chans", 3))

    def test_features_have_rounded_up_sizes(self, name, features_options, features_size):
        check_features(self.build(name, **features_options), features_size, self.out_indices)

    def test_no_classes_gives_pooled_features(self, name):
        check_pooled_features(self.build(name))

    def test_state_dict_round_trip_and_deterministic_eval(self, name, tmp_path):
        check_round_trip(self.build(name), tmp_path)

    def test_folding_the_norms_changes_no_output(self, name):
        check_folds(self.build(name))

    def test_batches_do_not_mix_in_eval(self, name):
        check_batches_do_not_mix(self.build(name))

    def test_mixers_call_the_ops_that_they_list(self, name):
        check_lists_its_ops(self.build(name))

    def test_mixers_of_every_option_call_the_ops_that_they_list(self, options):
        check_lists_its_ops(self.build(**options), options.get("in_chans", 3))

    def test_compiled_model_equals_eager(self, name, compiled_options):
        check_compiles(self.build(name, **compiled_options))

    def test_wrong_options_are_named(self, wrong, message):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            create_model(self.whole, **wrong)

    def test_a_stage_that_is_not_there_is_refused(self):
        stages = len(self.build()(features_only=True).feature_info)
        with pytest.raises(ValueError, match=rf"out_indices must be in 0\.\.{stages - 1}"):
            self.build()(features_only=True, out_indices=(stages,))
