"""The demo's pictures show what the papers' operators do, and its table what was measured."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("matplotlib")

from hybrid_kernels import demo
from hybrid_kernels.agreement import Agreement
from hybrid_kernels.demo import looks
from hybrid_kernels.demo.comparison import Comparison, Cost, table_of
from hybrid_kernels.demo.picture import draw
from python_ref.models import create_model

PLACE = (0.42, 0.6)
IMAGE = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).double()
SMALL = {
    "mrl_cvt_13": {"depths": (1, 1, 1), "widths": (16, 32, 48), "head_dim": 16},
    "pvt_v2_b0_mscsa": {
        "backbone": {"depths": (1, 1, 1, 1), "widths": (16, 32, 40, 64)},
        "heads": 2,
        "head_dim": 7,
    },
    "emsnet_xxtiny": {"depths": (1, 1, 1, 1)},
    "mat_1": {"depths": (1, 1, 2, 1)},
    "partialformer_b0": {"depths": (1, 1, 1, 1)},
    "mcga": {"depths": (1, 1, 1, 1)},
}


def look_at(name: str) -> looks.Look:
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, **SMALL[name]).eval().double()
    function = next(f for paper, f in looks.LOOKS.values() if paper == demo._paper(name))
    return function(model, IMAGE, PLACE)


def ratio(panel: looks.Panel) -> np.ndarray:
    return 1 + panel.values / 100


@pytest.mark.parametrize("name", SMALL)
def test_picture_of_every_paper_is_written(name, tmp_path):
    look = look_at(name)
    assert all(np.isfinite(panel.values).any() for strip in look.strips for panel in strip.panels)
    path = tmp_path / "drawn.svg"
    draw(look, torch.rand(3, 90, 90), PLACE, "a title", path)
    assert all(strip.title.split(":")[0] in path.read_text() for strip in look.strips)


def test_mrl_attends_between_the_regions_of_the_grid():
    look = look_at("mrl_cvt_13")
    attention, lengths = look.strips
    assert attention.panels[0].values.shape == lengths.panels[0].values.shape == look.grid
    assert len(attention.panels) == len(lengths.panels) == 3


def test_mscsa_scales_share_one_softmax():
    for strip in look_at("pvt_v2_b0_mscsa").strips:
        assert [panel.values.shape for panel in strip.panels] == [(7, 7), (4, 4), (3, 3)]
        keys = np.concatenate([ratio(panel).ravel() for panel in strip.panels])
        assert keys.mean() == pytest.approx(1)


def test_emsnet_generates_weights_whose_rows_sum_to_one():
    local, generated, _ = look_at("emsnet_xxtiny").strips
    for panel in generated.panels:
        assert panel.values.shape == (9, 9)
        np.testing.assert_allclose(ratio(panel).mean(axis=1), 1)
    rows, columns = np.nonzero(np.isfinite(local.panels[0].values))
    assert np.ptp(rows) <= 4 and np.ptp(columns) <= 4  # at most four windows of 3 x 3, stride 2


def test_mat_abstract_tokens_read_every_pixel_of_their_windows():
    look = look_at("mat_1")
    abstraction, mixing, fusion = look.strips
    assert look.grid == (2, 2)
    assert np.isfinite(abstraction.panels[0].values).all()
    assert abstraction.panels[0].values.shape == (14, 14)
    assert [len(strip.panels) for strip in look.strips] == [3, 3, 3]
    assert mixing.panels[0].values.shape == fusion.panels[0].values.shape == (2, 2)


def test_partialformer_query_reads_the_background_alone():
    foreground, background = look_at("partialformer_b0").strips
    for chosen, read in zip(foreground.panels, background.panels, strict=True):
        assert (np.isnan(read.values) == chosen.marked).all()
        assert chosen.values[chosen.marked].min() >= chosen.values[~chosen.marked].max()


def test_mcga_has_eight_queries():
    *queries, means = look_at("mcga").strips
    titles = [panel.title for strip in queries for panel in strip.panels]
    assert titles == [f"query {i}" for i in range(1, 9)]
    assert [panel.values.shape[0] for panel in means.panels] == [56, 28, 14, 7]


@pytest.mark.parametrize("name", demo.MODELS)
def test_every_default_model_has_a_paper(name):
    assert demo._paper(name).lower().replace("-", "") in name.replace("_", "")


def test_table_shows_reference_and_accelerated():
    slow, fast = Cost(0.2, 0.9, 300_000_000, 17), Cost(0.1, 0.3, 200_000_000, 2)
    good, bad = Agreement("a", 1.0, 1.0, 4.0), Agreement("b", 1.0, 8.0, 4.0)
    row = Comparison("name", "paper", (2, 3, 8, 6), [good, good, bad], slow, fast, 3, 4)
    assert not row.ok
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table_of([row]))
    text = console.export_text()
    for cell in ("2 x 3 x 8 x 6", "2.00x  100 ms", "900 ms", "300 MB", "3 of 4", "0.25", "2.00"):
        assert cell in text
    assert text.count("disagree") == 1
