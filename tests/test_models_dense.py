"""Dense prediction: what the papers print, for backbones with the heads of the usual toolbox."""

import pytest
import torch
from model_checks import check_row, row_id, tensors_of

from python_ref.counting import count
from python_ref.dense import create_dense
from python_ref.models import create_model
from python_ref.published.dense import ROWS, _padding


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_counts_equal_the_published_ones(row):
    check_row(row)


@pytest.mark.parametrize(
    ("head", "options", "millions", "giga"),
    [
        ("retinanet", {}, 37.97, 239.30),
        ("mask_rcnn", {}, 44.40, 260.14),
        (
            "cascade_mask_rcnn",
            {"box_convs": 0, "box_linears": 2, "class_agnostic": True},
            77.3,
            394,
        ),
    ],
    ids=["retinanet", "mask_rcnn", "cascade_mask_rcnn"],
)
def test_detectors_on_resnet_50_cost_what_the_toolbox_says(head, options, millions, giga):
    with torch.device("meta"):
        backbone = create_model("resnet50", features_only=True)
        counted = count(
            create_dense(head, backbone, **options).eval(), torch.empty(1, 3, 800, 1280)
        )
    assert counted.parameters / 1e6 == pytest.approx(millions, rel=4e-4)
    assert counted.total("mmcv") / 1e9 == pytest.approx(giga, rel=2e-4)


def test_padding_counts_the_pixels_that_fill_up_windows():
    # 50 x 80 pixels in windows of 7 become 56 x 84.
    assert _padding((800, 1280), [(16, 3, 2, 5)]) == (56 * 84 - 50 * 80) * 3**2 * 2 * 5
    assert _padding((448, 224), [(4, 8, 1, 4), (32, 8, 1, 4)]) == 0


FEW = {"dim": 16, "classes": 3, "proposals": 10, "detections": 5}


@pytest.mark.parametrize(
    ("backbone", "head", "options"),
    [
        ("mat_2", "mask_rcnn", FEW),
        ("partialformer_b0", "upernet", {"dim": 16}),
        ("mcga", "retinanet", {"dim": 16}),
        ("emsnet_xxtiny", "simple_baseline", {"dim": 16}),
        ("mrl_swin_t", "cascade_mask_rcnn", FEW),
        ("pvt_v2_b0_mscsa", "semantic_fpn", {"dim": 16}),
        ("accvit_femto", "retinanet", {"dim": 16}),
    ],
)
def test_a_backbone_of_every_paper_runs_with_a_head(backbone, head, options):
    torch.manual_seed(0)
    model = create_dense(head, create_model(backbone, features_only=True), **options).eval()
    x = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        maps, output = model.backbone(x), model(x)
    assert [m.shape[1] for m in maps] == [info.channels for info in model.backbone.feature_info]
    assert all(t.isfinite().all() for t in tensors_of(output))
