"""Dense prediction with MAT, PartialFormer, MCGA, EMSNet and MRL-Swin.

Detection is counted at 800 x 1280, as the usual toolbox does: pyramid and region proposals on all
levels, 1000 proposals for the box head, 100 for the mask head. Tools that hook modules do not see
products of two activations. MSCSA's rows are in `mscsa`.
"""

from collections.abc import Iterable, Sequence

from python_ref.counting import CONVENTIONS
from python_ref.models.mat import VARIANTS as MATS
from python_ref.models.swin import VARIANTS as SWINS
from python_ref.published.row import Row

Size = tuple[int, int]

_HOOKS = CONVENTIONS["fvcore"] | {"attention": 0}
_TOOLBOX = CONVENTIONS["mmcv"] | {"attention": 0}

_COCO, _COCO_MRL = (800, 1280), (800, 1200)
_ADE, _ADE_SQUARE, _POSE = (512, 2048), (512, 512), (256, 192)
_SIZES = {
    "retinanet": _COCO,
    "mask_rcnn": _COCO,
    "semantic_fpn": _ADE,
    "upernet": _ADE,
    "simple_baseline": _POSE,
}


def _padding(size: Size, stages: Iterable[Sequence[int]], window: int = 7) -> int:
    """MACs of linear layers on the pixels that fill up the windows of a map.

    Ours does not compute what it drops; the toolbox's models do. Each of `stages` is stride, width,
    blocks, and layers width -> width per block.
    """
    total = 0
    for stride, width, blocks, layers in stages:
        rows, columns = (-(-side // stride) for side in size)
        padded = (rows + -rows % window) * (columns + -columns % window)
        total += layers * blocks * width**2 * (padded - rows * columns)
    return total


# MAT: head; of MAT-2 to MAT-5 millions and billions as printed. Millions are sometimes cut instead
# of rounded: 18.68 is printed as 18, 24.97 as 25. So are the billions of Semantic FPN.
_MAT = {
    "retinanet": (("18", "164"), ("25", "172"), ("37", "191"), ("58", "217")),
    "mask_rcnn": (("29", "182"), ("35", "190"), ("47", "209"), ("68", "235")),
    "semantic_fpn": (("13", "98"), ("19", "107"), ("31", "127"), ("52", "154")),
}


def _mat(head: str, number: int, params: str, giga: str) -> Row:
    model, size = f"mat_{number}", _SIZES[head]
    config = MATS[model]
    padded = [(4 * 2**stage, config.width * 2**stage, config.depths[stage], 4) for stage in (2, 3)]
    return Row(
        f"MAT, {head}",
        model,
        head=head,
        size=size,
        paper_params=params,
        paper_macs=giga,
        convention=_HOOKS,
        spent=_padding(size, padded),
        params_within=0.04,
        macs_within=0.01 if head == "semantic_fpn" else None,
    )


# PartialFormer: head; of B1 to B3 millions and billions as printed.
_PARTIALFORMER = {
    "retinanet": (("16", "167"), ("29", "196"), ("44", "230")),
    "mask_rcnn": (("26", "185"), ("39", "214"), ("54", "248")),
    "semantic_fpn": (("10.8", "101.8"), ("23.5", "131.3"), ("38.4", "166.6")),
    "upernet": (("34.8", "856.3"), ("48.6", "886.9"), ("64.5", "923.2")),
    "simple_baseline": (("9.8", "1.7"), ("23.0", "2.9"), ("38.4", "4.4")),
}
# Cut instead of rounded: the millions of Mask R-CNN, the billions of the key points.
_PARTIALFORMER_WITHIN = {
    "mask_rcnn": {"params_within": 0.026},
    "semantic_fpn": {"macs_within": 0.004},
    "upernet": {"macs_within": 0.0004},
    "simple_baseline": {"macs_within": 0.04},
}


def _partialformer(head: str, number: int, params: str, giga: str) -> Row:
    return Row(
        f"PartialFormer, {head}",
        f"partialformer_b{number}",
        head=head,
        size=_SIZES[head],
        paper_params=params,
        paper_macs=giga,
        convention=_HOOKS,
        **_PARTIALFORMER_WITHIN.get(head, {}),
    )


def _mcga(head: str, params: str, giga: str, size: Size, **within: float) -> Row:
    return Row(
        f"MCGA, {head}",
        "mcga",
        head=head,
        size=size,
        paper_params=params,
        paper_macs=giga,
        convention=_HOOKS,
        **within,
    )


def _emsnet(head: str, model: str, params: str | None, giga: str | None, **options: object) -> Row:
    return Row(
        "EMSNet, Table 3.3" if head == "retinanet" else "EMSNet, Mask R-CNN",
        model,
        head=head,
        size=_COCO,
        paper_params=params,
        paper_macs=giga,
        convention=_TOOLBOX,
        **options,
    )


_PRINTED_WIDTHS = "the printed widths do not give the printed figures; those of xtiny_c192 do"


def _swin(model: str, head: str, params: str) -> Row:
    config = SWINS[model]
    strides = (4, 8, 16, 32)
    projections = [
        (stride, width, depth, 1)
        for stride, width, depth in zip(strides, config.widths, config.depths, strict=True)
    ]
    return Row(
        "MRL, Sec. 4.2",
        model,
        head=head,
        size=_COCO_MRL,
        paper_params=params,
        convention="modules",
        spent=_padding(_COCO_MRL, projections),
    )


def _mrl_swin(
    letter: str, head: str, params: tuple[str, str], increase: str, **within: float
) -> tuple[Row, Row]:
    """Swin, and MRL-Swin with the increase of operations that the paper prints."""
    baseline = _swin(f"swin_{letter}", head, params[0])
    row = Row(
        "MRL, Sec. 4.2",
        f"mrl_swin_{letter}",
        head=head,
        size=_COCO_MRL,
        paper_params=params[1],
        paper_macs=increase,
        convention="modules",
        over=baseline,
        note="for one backbone the printed increases of two detectors differ by 1 to 3",
        **within,
    )
    return baseline, row


ROWS = (
    *(
        _mat(head, number, *printed)
        for head, variants in _MAT.items()
        for number, printed in enumerate(variants, start=2)
    ),
    *(
        _partialformer(head, number, *printed)
        for head, variants in _PARTIALFORMER.items()
        for number, printed in enumerate(variants, start=1)
    ),
    _mcga("retinanet", "18", "163", _COCO),
    _mcga("mask_rcnn", "28", "181", _COCO, params_within=0.03),
    _mcga("semantic_fpn", "12.8", "24.4", _ADE_SQUARE, params_within=0.006, macs_within=0.004),
    _emsnet("retinanet", "resnet18", None, "188.7"),
    _emsnet("retinanet", "emsnet_xxtiny", "11.7", "162.1", macs_within=0.001),
    _emsnet("retinanet", "emsnet_xtiny", "12.4", "167.9", checked=False, note=_PRINTED_WIDTHS),
    _emsnet(
        "retinanet", "emsnet_xtiny_c192", "12.4", "167.9", params_within=0.022, macs_within=0.013
    ),
    _emsnet("retinanet", "emsnet_tiny", "14.7", "190.3", params_within=0.004, macs_within=0.001),
    _emsnet("mask_rcnn", "emsnet_xtiny", "23", None, checked=False, note=_PRINTED_WIDTHS),
    _emsnet("mask_rcnn", "emsnet_xtiny_c192", "23", None),
    _emsnet("mask_rcnn", "emsnet_tiny", "25", None),
    *_mrl_swin("t", "mask_rcnn", ("48", "50"), "-16", macs_within=0.07),
    *_mrl_swin("t", "cascade_mask_rcnn", ("86", "88"), "-13", macs_within=0.16),
    *_mrl_swin("s", "mask_rcnn", ("69", "72"), "-32", params_within=0.017),
    *_mrl_swin(
        "s", "cascade_mask_rcnn", ("107", "110"), "-33", params_within=0.01, macs_within=0.04
    ),
)
