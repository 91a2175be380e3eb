"""MRL: Tables 1 and 7, whole models and their mixers alone ("SA"), and readings of the mixer.

The paper prints no formulas. Its operations are multiply-accumulates, products of two activations
included, without the class token. The operations of its whole models are CvT's published totals
minus CvT's attention plus MRL: that constant is where they differ from ours.
"""

from typing import NamedTuple

from python_ref.published.row import Row

_SIZES = (224, 384)


class _Model(NamedTuple):
    """Millions and billions as printed (the latter at 224 and 384), then ours exactly."""

    model: str
    mixer_params: str
    params: str
    mixer_macs: tuple[str, str]
    macs: tuple[str, str]
    exact_mixer_params: int
    exact_params: int
    exact_mixer_macs: tuple[int, int]
    exact_macs: tuple[int, int]


_MODELS = (
    _Model(
        "cvt_13",
        "6.40",
        "19.98",
        ("1.42", "7.10"),
        ("4.50", "16.30"),
        6_368_192,
        19_997_480,
        (1_422_564_864, 7_066_312_704),
        (4_566_089_216, 16_269_359_616),
    ),
    _Model(
        "mrl_cvt_13",
        "6.40",
        "19.98",
        ("0.63", "1.99"),
        ("3.71", "11.19"),
        6_399_296,
        20_028_584,
        (631_364_608, 1_999_024_128),
        (3_773_760_000, 11_198_753_280),
    ),
    _Model(
        "cq_mrl_cvt_13",
        "3.35",
        "16.93",
        ("0.46", "1.39"),
        ("3.54", "10.59"),
        3_333_120,
        16_962_408,
        (459_975_680, 1_382_261_760),
        (3_599_168_512, 10_578_212_352),
    ),
    _Model(
        "cvt_21",
        "10.34",
        "31.54",
        ("2.17", "10.20"),
        ("7.13", "24.90"),
        10_301_504,
        31_622_696,
        (2_173_022_208, 10_196_287_488),
        (7_177_985_024, 24_849_091_584),
    ),
    _Model(
        "mrl_cvt_21",
        "10.35",
        "31.55",
        ("1.03", "3.23"),
        ("5.98", "17.93"),
        10_353_344,
        31_674_536,
        (1_026_274_816, 3_233_120_256),
        (6_029_431_296, 17_880_615_936),
    ),
    _Model(
        "cq_mrl_cvt_21",
        "5.42",
        "26.62",
        ("0.78", "2.52"),
        ("5.74", "17.22"),
        5_394_432,
        26_715_624,
        (782_168_576, 2_515_746_816),
        (5_780_606_464, 17_158_523_904),
    ),
)


def _rows(model: _Model) -> tuple[Row, ...]:
    """The whole model and its mixers at both sizes."""
    whole = [
        Row(
            "Tables 1, 7",
            model.model,
            size=(size, size),
            paper_params=model.params,
            paper_macs=macs,
            params=model.exact_params,
            macs=exact,
            params_within=0.004,
            macs_within=0.018 if size == 224 else 0.004,
        )
        for size, macs, exact in zip(_SIZES, model.macs, model.exact_macs, strict=True)
    ]
    mixers = [
        Row(
            "Tables 1, 7",
            model.model,
            {"cls_token": False},
            size=(size, size),
            under="mixer",
            paper_params=model.mixer_params,
            paper_macs=macs,
            params=model.exact_mixer_params,
            macs=exact,
            params_within=0.006,
            macs_within=0.0065,
        )
        for size, macs, exact in zip(_SIZES, model.mixer_macs, model.exact_mixer_macs, strict=True)
    ]
    return (*whole, *mixers)


# CommonQKV in CvT itself (Table 8): only accuracy is printed.
_COMMON_CVT = tuple(
    Row("Table 8", model, {"cls_token": cls}, under=under, params=params, macs=macs)
    for model, cls, under, params, macs in (
        ("cq_cvt_13", True, "", 16_884_136, 4_383_309_312),
        ("cq_cvt_13", False, "mixer", 3_254_848, 1_242_734_080),
        ("cq_cvt_21", True, "", 26_587_048, 6_877_830_144),
        ("cq_cvt_21", False, "mixer", 5_265_856, 1_877_585_920),
    )
)

# What else the description allows; (13 layers, 21 layers): parameters, operations at both sizes.
_READINGS = (
    (
        "no 3x3 on queries, keys and values",
        {"kv_conv": False},
        0.016,
        (6_304_960, 627_413_248, 1_987_411_968),
        (10_199_872, 1_019_952_640, 3_214_540_800),
    ),
    (
        "3x3 on queries as well",
        {"q_conv": True},
        0.008,
        (6_446_464, 633_340_288, 2_004_830_208),
        (10_430_080, 1_029_435_904, 3_242_409_984),
    ),
    (
        "one sampler each for queries, keys and values",
        {"samplers": 3, "kv_conv": False},
        0.006,
        (6_367_168, 629_922_048, 1_994_784_768),
        (10_303_552, 1_023_966_720, 3_226_337_280),
    ),
)


def _reading(
    label: str, options: dict[str, object], within: float, *counts: tuple[int, int, int]
) -> tuple[Row, ...]:
    """The mixers of MRL-13 and MRL-21 in another reading."""
    return tuple(
        Row(
            "Tables 1, 7",
            model.model,
            {"cls_token": False, **options},
            label=f"{model.model}, {label}",
            size=(size, size),
            under="mixer",
            paper_params=model.mixer_params,
            paper_macs=printed,
            params=params,
            macs=exact,
            params_within=within,
            macs_within=0.0105,
        )
        for model, (params, *macs) in zip((_MODELS[1], _MODELS[4]), counts, strict=True)
        for size, printed, exact in zip(_SIZES, model.mixer_macs, macs, strict=True)
    )


# The strides of CommonQKV's keys and values are not printed. Of 1 and 2 only one fits each model.
_OTHER_STRIDES = tuple(
    Row(
        "Tables 1, 7",
        model.model,
        {"cls_token": False, "kv_stride": stride},
        size=(384, 384),
        under="mixer",
        paper_macs=model.mixer_macs[1],
        macs=macs,
        checked=False,
        note=f"{deviation} % from the printed {model.mixer_macs[1]}",
    )
    for model, stride, macs, deviation in (
        (_MODELS[2], 1, 1_554_204_672, "+12"),
        (_MODELS[5], 2, 2_254_970_880, "-11"),
    )
)

ROWS = (
    *(row for model in _MODELS for row in _rows(model)),
    *_COMMON_CVT,
    *(row for reading in _READINGS for row in _reading(*reading)),
    *_OTHER_STRIDES,
)
