"""MAT, chapter 4: the five variants, and the ablations of MAT-2 in Tables 4.2 and 4.9."""

from python_ref.counting import CONVENTIONS
from python_ref.models.mat import PURE_MLP
from python_ref.published.row import Row

# fvcore, which takes one operation for every element of a global pool.
CONVENTION = CONVENTIONS["fvcore"] | {"pool": 1}

_NONE, _WINDOW, _ABSTRACT = "none", "window", "abstract"

# Number; millions and billions as printed; exact parameters; deviation of the operations.
_VARIANTS = (
    (1, "6.714", "0.389", 6_713_664, 0.0021),
    (2, "10.767", "0.666", 10_767_496, 0.0008),
    (3, "17.008", "1.042", 17_008_164, 0.0014),
    (4, "29.057", "1.933", 29_056_584, 0.0009),
    (5, "50.108", "3.156", 50_107_944, 0.0005),
)
# Table; what the paper calls it; options of MAT-2; then as above, None meaning that it rounds.
_ABLATIONS = (
    (
        "Table 4.2",
        "attention in stages 1-4",
        {"mixers": (_ABSTRACT,) * 4},
        "10.874",
        "0.783",
        10_874_312,
        0.0012,
    ),
    (
        "Table 4.2",
        "attention in stages 2-4",
        {"mixers": (_NONE, _ABSTRACT, _ABSTRACT, _ABSTRACT)},
        "10.852",
        "0.707",
        10_852_360,
        0.0013,
    ),
    (
        "Table 4.2",
        "attention in stage 4",
        {"mixers": (_NONE, _NONE, _NONE, _ABSTRACT)},
        "9.767",
        "0.568",
        9_766_792,
        None,
    ),
    ("Tables 4.2, 4.9", "Pure MLP", PURE_MLP, "5.699", "0.461", 5_699_464, None),
    (
        "Tables 4.2, 4.9",
        "plain window attention",
        {"mixers": (_NONE, _NONE, _WINDOW, _WINDOW)},
        "7.802",
        "0.659",
        7_802_248,
        None,
    ),
    (
        "Table 4.9",
        "convolutional patch embedding",
        {"embed": "conv"},
        "11.107",
        "0.703",
        11_106_856,
        0.0012,
    ),
    ("Table 4.9", "patch merging", {"embed": "merge"}, "10.892", "0.679", 10_892_264, 0.0021),
)

ROWS = tuple(
    Row(
        "ImageNet-1K",
        f"mat_{number}",
        paper_params=params,
        paper_macs=macs,
        params=exact,
        convention=CONVENTION,
        macs_within=within,
    )
    for number, params, macs, exact, within in _VARIANTS
) + tuple(
    Row(
        table,
        "mat_2",
        options,
        label=f"MAT-2, {label}",
        paper_params=params,
        paper_macs=macs,
        params=exact,
        convention=CONVENTION,
        macs_within=within,
    )
    for table, label, options, params, macs, exact, within in _ABLATIONS
)
