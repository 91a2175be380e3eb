"""Dense heads: their parts against independent formulations, and forward passes of each."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_checks import tensors_of
from torch import nn

from python_ref.dense import create_dense, list_heads
from python_ref.dense.boxes import decode_boxes, grid_anchors, pairwise_iou, suppress
from python_ref.dense.fpn import FeaturePyramid
from python_ref.dense.retinanet import RetinaNetOutput
from python_ref.dense.roi_align import assign_levels, roi_align
from python_ref.models.backbone import Backbone, Settings


class Pyramid(Backbone):
    """Means over patches, projected to the widths of the stages."""

    def __init__(self, *widths: int) -> None:
        strides = [4 * 2**index for index in range(len(widths))]
        every = tuple(range(len(widths)))
        super().__init__(widths, strides, Settings(features_only=True, out_indices=every))
        self.projections = nn.ModuleList(nn.Conv2d(3, width, 1) for width in widths)

    def forward_features(self, x):
        maps = []
        for info, projection in zip(self.stage_info, self.projections, strict=True):
            maps.append(projection(F.avg_pool2d(x, info.stride, ceil_mode=True)))
        return maps


def dense(head, widths=(8, 12, 16, 24), **options):
    torch.manual_seed(0)
    return create_dense(head, Pyramid(*widths), **options)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# Every head, small, with the shapes of its outputs on a ragged image of 75 x 101.
SMALL = {
    "cascade_mask_rcnn": {"classes": 3, "dim": 16, "proposals": 20, "detections": 5},
    "deformable_detr_neck": {"dim": 16, "groups": 4},
    "mask_rcnn": {"classes": 3, "dim": 16, "proposals": 20, "detections": 5},
    "retinanet": {"classes": 3, "dim": 16},
    "semantic_fpn": {"classes": 5, "dim": 16, "hidden": 8},
    "simple_baseline": {"points": 4, "dim": 16},
    "topformer": {"classes": 5},
    "upernet": {"classes": 5, "dim": 16, "auxiliary": 8},
}


def small(head):
    return dense(head, (16, 16, 16, 16) if head == "topformer" else (8, 12, 16, 24), **SMALL[head])


@pytest.mark.parametrize("head", list_heads())
def test_every_head_trains_on_a_ragged_image(head):
    model = small(head)
    outputs = model(torch.randn(2, 3, 75, 101))
    loss = sum(t.square().sum() for t in tensors_of(outputs) if t.requires_grad)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    # Heads that start at stride 8, or look at the last map only, leave the other maps alone.
    assert all(name.startswith("backbone.projections") for name in missing)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", list_heads())
def test_inference_is_deterministic_and_needs_no_auxiliary_head(head):
    model = small(head).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        first, second = tensors_of(model(x)), tensors_of(model(x))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_sizes_of_segmentation_and_heat_maps():
    x = torch.randn(2, 3, 75, 101)
    assert small("semantic_fpn")(x).shape == (2, 5, 19, 26)
    assert small("topformer")(x).shape == (2, 5, 19, 26)
    assert small("simple_baseline")(x).shape == (2, 4, 24, 32)
    logits, auxiliary = small("upernet")(x)
    assert (logits.shape, auxiliary.shape) == ((2, 5, 19, 26), (2, 5, 5, 7))


def test_sizes_of_retinanet():
    logits, deltas = small("retinanet")(torch.randn(2, 3, 75, 101))
    sizes = [(10, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
    assert [t.shape for t in logits] == [(2, 27, *size) for size in sizes]
    assert [t.shape for t in deltas] == [(2, 36, *size) for size in sizes]


@pytest.mark.parametrize(("head", "stages"), [("mask_rcnn", 1), ("cascade_mask_rcnn", 3)])
def test_sizes_of_mask_rcnn(head, stages):
    output = small(head)(torch.randn(2, 3, 75, 101))
    assert output.proposals.boxes.shape == (2, 20, 4)
    assert [t.shape for t in output.logits] == [(2, 20, 4)] * stages
    assert [t.shape for t in output.deltas] == [(2, 20, 3, 4)] * stages
    assert [t.shape for t in output.masks] == [(2, 5, 3, 28, 28)] * stages
    boxes, scores, labels = output.detections
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 5, 4), (2, 5), (2, 5))
    assert (scores.diff(dim=1) <= 0).all()
    assert ((boxes >= 0) & (boxes <= torch.tensor([101, 75, 101, 75]))).all()


def test_class_agnostic_cascade_runs():
    output = dense(
        "cascade_mask_rcnn", class_agnostic=True, box_convs=0, box_linears=2, **SMALL["mask_rcnn"]
    )(torch.randn(1, 3, 64, 64))
    assert [t.shape for t in output.deltas] == [(1, 20, 1, 4)] * 3


def test_images_of_a_batch_do_not_mix():
    model = small("cascade_mask_rcnn").eval().double()
    x = torch.randn(3, 3, 75, 101, dtype=torch.float64)
    with torch.no_grad():
        together, alone = tensors_of(model(x)), tensors_of(model(x[1:2]))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b)


@pytest.mark.parametrize(
    ("head", "expected"),
    [("mask_rcnn", 20_273_904), ("cascade_mask_rcnn", 58_109_106)],
)
def test_parameters_outside_a_swin_backbone(head, expected):
    # 20.27 M and 58.11 M beside the 27.5 M of Swin-T, in the table of the toolbox.
    with torch.device("meta"):
        assert parameters(dense(head, (96, 192, 384, 768)).head) == expected


def test_pyramid_adds_coarse_levels_to_fine_ones():
    infos = Pyramid(4, 4, 4).feature_info
    pyramid = FeaturePyramid(infos, 4, extra_levels=1).double()
    for conv in (*pyramid.laterals, *pyramid.outputs):  # the identity
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    maps = [torch.randn(1, 4, size, 2 * size, dtype=torch.float64) for size in (8, 4, 2)]
    levels = pyramid(maps)
    up = torch.ones(2, 2, dtype=torch.float64)
    middle = maps[1] + torch.kron(maps[2], up)
    expected = [maps[0] + torch.kron(middle, up), middle, maps[2], maps[2][..., ::2, ::2]]
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted)
    assert [info.stride for info in pyramid.feature_info] == [4, 8, 16, 32]


def roi_align_by_grid_sample(levels, strides, boxes, bins):
    """One box at a time, with PyTorch's sampler."""
    which = assign_levels(boxes, len(levels))
    crops = []
    for image, of_image in enumerate(boxes):
        for index, (left, top, right, bottom) in enumerate(of_image):
            level = which[image, index]
            x = levels[level][image : image + 1]
            steps = (torch.arange(2 * bins, dtype=x.dtype) + 0.5) / (2 * bins)
            height, width = (side * strides[level] for side in x.shape[2:])
            rows = 2 * (top + (bottom - top) * steps) / height - 1
            columns = 2 * (left + (right - left) * steps) / width - 1
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
            sampled = F.grid_sample(x, grid[None], padding_mode="border", align_corners=False)
            crops.append(F.avg_pool2d(sampled, 2)[0])
    return torch.stack(crops).unflatten(0, boxes.shape[:2])


def test_roi_align_equals_sampling_box_by_box():
    torch.manual_seed(0)
    size = (70, 90)
    strides = [4, 8, 16]
    levels = [
        torch.randn(2, 3, -(-size[0] // s), -(-size[1] // s), dtype=torch.float64).requires_grad_()
        for s in strides
    ]
    corners = torch.rand(2, 30, 2, 2, dtype=torch.float64) * torch.tensor([90.0, 70.0])
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    boxes[:, 0] = torch.tensor([0.0, 0.0, 90.0, 70.0])  # the image
    boxes[:, 1] = 10.0  # a point
    boxes[:, 2:8] *= 9  # large ones, on coarse levels, partly outside
    crops = roi_align(levels, strides, boxes, 7)
    expected = roi_align_by_grid_sample(levels, strides, boxes, 7)
    torch.testing.assert_close(crops, expected)
    assert len(assign_levels(boxes, 3).unique()) == 3
    weight = torch.randn_like(crops)
    gradients = torch.autograd.grad((crops * weight).sum(), levels)
    wanted = torch.autograd.grad((expected * weight).sum(), levels)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_box_of_224_pixels_takes_the_third_level():
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=-1)
    assert assign_levels(boxes, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_anchors_have_areas_ratios_and_places():
    anchors = grid_anchors(torch.empty(1, 1, 2, 3), 16, [32, 64]).view(2, 3, 6, 4)
    sides = anchors[..., 2:] - anchors[..., :2]
    torch.testing.assert_close(sides.prod(-1).sqrt()[0, 0], torch.tensor([32.0, 64] * 3))
    ratios = (sides[..., 1] / sides[..., 0])[1, 2]
    torch.testing.assert_close(ratios, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    torch.testing.assert_close(centres[1, 2], torch.tensor([32.0, 16]).expand(6, 2))


def test_decoding_inverts_encoding():
    torch.manual_seed(0)
    corners = torch.rand(2, 50, 2, 2, dtype=torch.float64) * 100
    boxes, targets = torch.cat([corners.amin(2), corners.amax(2) + 1], dim=-1)
    scales = (0.1, 0.1, 0.2, 0.2)
    sides, target_sides = (b[:, 2:] - b[:, :2] for b in (boxes, targets))
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / sides
    deltas = torch.cat([shift, (target_sides / sides).log()], dim=-1) / shift.new_tensor(scales)
    kept = (target_sides / sides).amax(-1) < 60
    decoded = decode_boxes(boxes, deltas, (200, 200), scales)
    torch.testing.assert_close(decoded[kept], targets[kept])


def test_decoded_boxes_stay_in_the_image_and_finite():
    boxes = torch.tensor([[10.0, 10, 20, 30], [0, 0, 5, 5]])
    deltas = torch.tensor([[100.0, -100, 1e4, 1e4], [-100, 100, 0, 0]])
    decoded = decode_boxes(boxes, deltas, (40, 60))
    assert decoded.isfinite().all()
    assert (decoded >= 0).all()
    assert (decoded <= torch.tensor([60, 40, 60, 40])).all()


integer_box = st.tuples(*[st.integers(0, 9)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(st.lists(integer_box, min_size=1, max_size=6), st.lists(integer_box, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_iou_counts_pixels(first, second):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    expected = [
        [len(pixels(a) & pixels(b)) / max(1, len(pixels(a) | pixels(b))) for b in second]
        for a in first
    ]
    found = pairwise_iou(torch.tensor(first).double(), torch.tensor(second).double())
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_suppression_keeps_the_best_and_other_labels():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 9, 10], [20, 20, 30, 30]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    labels = torch.tensor([[0, 0, 1, 0]])
    assert torch.equal(suppress(boxes, scores, None, 0.5), torch.tensor([[0.9, 0, 0, 0.6]]))
    assert torch.equal(suppress(boxes, scores, labels, 0.5), torch.tensor([[0.9, 0, 0.7, 0.6]]))


@given(st.lists(integer_box, min_size=1, max_size=12), st.sampled_from([0.2, 0.5, 0.7]))
@settings(max_examples=50, deadline=None)
def test_what_suppression_keeps_does_not_overlap(boxes, iou):
    boxes = torch.tensor(boxes).double()[None]
    scores = torch.linspace(1, 0.1, boxes.shape[1])[None]
    kept = suppress(boxes, scores, None, iou)[0] > 0
    assert kept[0]
    overlaps = pairwise_iou(boxes[0, kept], boxes[0, kept]).triu(diagonal=1)
    assert (overlaps <= iou).all()


def test_retinanet_finds_the_anchor_with_the_highest_score():
    model = small("retinanet")
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    logits = [torch.full((1, 27, *size), -9.0) for size in sizes]
    deltas = [torch.zeros(1, 36, *size) for size in sizes]
    logits[0][0, 3 * 3 + 2, 4, 5] = 3.0  # anchor 3: ratio 1, the smallest side; class 2
    boxes, scores, labels = model.head.detect(RetinaNetOutput(logits, deltas), (64, 96))
    torch.testing.assert_close(boxes[0, 0], torch.tensor([24.0, 16, 56, 48]))
    assert labels[0, 0] == 2
    torch.testing.assert_close(scores[0, 0], torch.tensor(3.0).sigmoid())
    assert (scores[0, 1:] < 0.01).all()


def test_semantic_fpn_sums_all_levels():
    model = dense("semantic_fpn", (3, 3, 3, 3), classes=3, dim=3, hidden=3).eval()
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):  # the identity, beside BatchNorm's
            nn.init.dirac_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    maps = [torch.full((1, 3, 32 // 2**i, 48 // 2**i), 10.0**i) for i in range(4)]
    with torch.no_grad():
        logits = model.head(maps, (128, 192))
    # A map is part of its own level and of all finer ones.
    torch.testing.assert_close(logits, torch.full((1, 3, 32, 48), 4321.0), rtol=1e-3, atol=0)


def test_detectors_run_in_mixed_precision():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = small("mask_rcnn").eval()(torch.rand(1, 3, 75, 101))
    assert output.masks[0].dtype == torch.bfloat16
    assert all(t.isfinite().all() for t in tensors_of(output))


def test_boxes_are_exact_in_low_precision():
    level = torch.empty(1, 1, 1, 301, dtype=torch.bfloat16)
    assert torch.equal(grid_anchors(level, 4, [32]), grid_anchors(level.float(), 4, [32]))


def test_shapes_do_not_depend_on_data_so_that_a_detector_is_one_graph():
    model = small("mask_rcnn").eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(tensors_of(compiled(x)), tensors_of(model(x)), strict=True):
            torch.testing.assert_close(a, b)


def test_auxiliary_head_is_for_training():
    assert small("upernet").eval()(torch.randn(1, 3, 64, 64)).auxiliary is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense("mask_r_cnn"), "there are cascade_mask_rcnn, "),
        (lambda: dense("retinanet", width=3), "no option 'width'; .*classes"),
        (lambda: dense("mask_rcnn", stages=4), r"stages must be in 1\.\.3, got 4"),
        (lambda: dense("topformer"), "same number of channels, got"),
        (lambda: create_dense("upernet", nn.Identity()), "features_only=True"),
        (lambda: FeaturePyramid([], extra="none"), "extra must be 'pool' or 'conv', got 'none'"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
