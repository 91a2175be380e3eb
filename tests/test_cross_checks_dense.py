"""Parts of the dense heads against torchvision and transformers."""

import independent
import pytest
import torch
from independent import check_equal, randomised, with_weights_of

from python_ref.dense.boxes import decode_boxes, flatten_positions
from python_ref.dense.fpn import FeaturePyramid
from python_ref.dense.retinanet import RetinaNet
from python_ref.dense.roi_align import assign_levels, roi_align
from python_ref.dense.roi_heads import BoxHead, MaskHead, RegionProposals
from python_ref.dense.segmentation import UperNet
from python_ref.models.backbone import FeatureInfo

WIDTHS = (8, 12, 16, 24)
FEATURES = [FeatureInfo(width, 4 * 2**index) for index, width in enumerate(WIDTHS)]
LEVELS = [FeatureInfo(16, info.stride) for info in FEATURES]
TOWER = [
    (r"^conv\.(\d)\.0", lambda m: str(2 * int(m[1]))),
    (r"^(cls_logits|bbox_reg)", "8"),
]
UPERNET = [
    (r"^psp_modules\.(\d)\.1", r"pooled.\1"),
    (r"^lateral_convs", "laterals"),
    (r"^fpn_convs", "outputs"),
    (r"^fpn_bottleneck", "fuse"),
    (r"^classifier", "classify"),
    (r"\.batch_norm\.", ".norm."),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def maps_of(features, batch=2, rows=19, columns=26):
    """Random maps of a ragged image, finest first."""
    maps = []
    for info in features:
        maps.append(torch.randn(batch, info.channels, rows, columns, dtype=torch.float64))
        rows, columns = -(-rows // 2), -(-columns // 2)
    return maps


def boxes_in(size, number):
    """Random boxes (number, 4) inside an image."""
    corners = torch.rand(number, 2, 2, dtype=torch.float64)
    scale = torch.tensor([size[1], size[0]] * 2)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1) * scale


def test_feature_pyramid(record_property):
    ops = independent.load("torchvision.ops.feature_pyramid_network")
    theirs = randomised(
        ops.FeaturePyramidNetwork(list(WIDTHS), 16, extra_blocks=ops.LastLevelMaxPool())
    )
    renames = [
        (r"inner_blocks\.(\d)\.0", r"laterals.\1"),
        (r"layer_blocks\.(\d)\.0", r"outputs.\1"),
    ]
    ours = with_weights_of(
        theirs.state_dict(), FeaturePyramid(FEATURES, 16, extra_levels=1), renames
    )
    maps = maps_of(FEATURES)
    with torch.no_grad():
        expected = theirs({str(index): x for index, x in enumerate(maps)})
        check_equal(record_property, ours(maps), list(expected.values()))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_towers_of_retinanet(task, record_property):
    module = independent.load("torchvision.models.detection.retinanet")
    head = RetinaNet(FEATURES, classes=5, dim=16)
    if task == "classification":
        theirs, ours, channels = module.RetinaNetClassificationHead(16, 9, 5), head.classify, 5
    else:
        theirs, ours, channels = module.RetinaNetRegressionHead(16, 9), head.regress, 4
    theirs = randomised(theirs)
    ours = with_weights_of(theirs.state_dict(), ours, TOWER)
    levels = maps_of(LEVELS)
    with torch.no_grad():
        found = torch.cat([flatten_positions(ours(x), channels) for x in levels], dim=1)
        check_equal(record_property, [found], [theirs(levels)])


def test_region_proposals(record_property):
    module = independent.load("torchvision.models.detection.rpn")
    theirs = randomised(module.RPNHead(16, 3))
    renames = [(r"^conv\.0\.0", "conv"), (r"^cls_logits", "objectness"), (r"^bbox_pred", "regress")]
    ours = with_weights_of(theirs.state_dict(), RegionProposals(LEVELS, 20), renames)
    levels = maps_of(LEVELS)
    with torch.no_grad():
        found, (logits, deltas) = ours(levels, (75, 101)), theirs(levels)
        check_equal(record_property, [*found.logits, *found.deltas], [*logits, *deltas])


def test_decoded_boxes(record_property):
    utils = independent.load("torchvision.models.detection._utils")
    ops = independent.load("torchvision.ops.boxes")
    boxes, deltas = boxes_in((75, 101), 50), 3 * torch.randn(50, 4, dtype=torch.float64)
    expected = utils.BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(deltas, boxes)
    expected = ops.clip_boxes_to_image(expected, (75, 101))
    found = decode_boxes(boxes, deltas, (75, 101), (0.1, 0.1, 0.2, 0.2))
    check_equal(record_property, [found], [expected])


@pytest.mark.parametrize("bins", [7, 14])
def test_roi_align(bins, record_property):
    module = independent.load("torchvision.ops.roi_align")
    (level,) = maps_of(LEVELS[:1])
    boxes = boxes_in((76, 104), 60).unflatten(0, (2, 30))
    image = torch.arange(2, dtype=torch.float64).repeat_interleave(30)
    rows = torch.cat([image[:, None], boxes.flatten(0, 1)], dim=1)
    expected = module._roi_align(level, rows, 0.25, bins, bins, 2, True)
    found = roi_align([level], [4], boxes, bins).flatten(0, 1)
    check_equal(record_property, [found], [expected])


def test_levels_of_boxes():
    poolers = independent.load("torchvision.ops.poolers")
    boxes = boxes_in((1600, 2400), 500)
    mapper = poolers.initLevelMapper(2, 5)
    assert torch.equal(assign_levels(boxes, 4), mapper([boxes]))


def test_box_head(record_property):
    module = independent.load("torchvision.models.detection.faster_rcnn")
    theirs = [
        randomised(module.TwoMLPHead(16 * 49, 32)),
        randomised(module.FastRCNNPredictor(32, 6)),
    ]
    state = {name: t for part in theirs for name, t in part.state_dict().items()}
    renames = [
        (r"^fc6", "linears.0"),
        (r"^fc7", "linears.1"),
        (r"^cls_score", "classify"),
        # Theirs predicts a box for the background too: its classes are one more.
        (r"^bbox_pred", "regress"),
    ]
    head = BoxHead(16, 5, width=32)
    head.regress = torch.nn.Linear(32, 4 * 6)
    ours = with_weights_of(state, head, renames)
    crops = torch.randn(2, 3, 16, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        logits, deltas = theirs[1](theirs[0](crops.flatten(0, 1)))
        found = [x.flatten(0, 1).flatten(1) for x in ours(crops)]
        check_equal(record_property, found, [logits, deltas])


def test_mask_head(record_property):
    module = independent.load("torchvision.models.detection.mask_rcnn")
    theirs = [
        randomised(module.MaskRCNNHeads(16, (16,) * 4, 1)),
        randomised(module.MaskRCNNPredictor(16, 16, 5)),
    ]
    state = {name: t for part in theirs for name, t in part.state_dict().items()}
    renames = [
        (r"^(\d)\.0\.", r"convs.\1."),
        (r"^conv5_mask", "upsample"),
        (r"^mask_fcn_logits", "classify"),
    ]
    ours = with_weights_of(state, MaskHead(16, 5), renames)
    crops = torch.randn(2, 3, 16, 14, 14, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs[1](theirs[0](crops.flatten(0, 1)))
        check_equal(record_property, [ours(crops).flatten(0, 1)], [expected])


def test_upernet(record_property):
    transformers = independent.load("transformers")
    module = independent.load("transformers.models.upernet.modeling_upernet")
    config = transformers.UperNetConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
        hidden_size=16,
        num_labels=5,
        auxiliary_channels=10,
        auxiliary_in_channels=WIDTHS[2],
        auxiliary_num_convs=1,
    )
    decoder = randomised(module.UperNetHead(config, list(WIDTHS)))
    auxiliary = randomised(module.UperNetFCNHead(config, in_channels=WIDTHS[2]))
    state = decoder.state_dict()
    for name, tensor in auxiliary.state_dict().items():
        name = name.replace("convs.0", "auxiliary.0").replace("classifier", "auxiliary.2")
        state[name] = tensor
    model = UperNet(FEATURES, classes=5, dim=16, auxiliary=10)
    ours = with_weights_of(state, model, UPERNET)
    maps = maps_of(FEATURES)
    with torch.no_grad():
        found = [ours(maps, (75, 101)).logits, ours.auxiliary(maps[2])]
        check_equal(record_property, found, [decoder(maps), auxiliary(maps)])
