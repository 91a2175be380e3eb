"""ACC-ViT: Table 2 (variants) and Table 8 (ablations)."""

from python_ref.counting import MACS
from python_ref.published.row import Row

# fvcore on a model in training mode, with one operation per element of a pooled map.
CONVENTION = MACS | {"batch_norm_training": 5, "layer_norm": 5, "pool": 1}

_PER_BRANCH = {"gate": False, "shared_mlp": False}


def _row(table: str, model: str, options: dict, params: str, macs: str, *exact: int) -> Row:
    return Row(
        table,
        f"accvit_{model}",
        options,
        paper_params=params,
        paper_macs=macs,
        params=exact[0],
        macs=exact[1],
        convention=CONVENTION,
        training=True,
    )


ROWS = (
    _row("Table 2", "tiny", {}, "28.367", "5.694", 28_367_252, 5_535_014_912),
    _row("Table 2", "small", {}, "62.886", "11.59", 62_886_494, 11_354_996_736),
    _row("Table 2", "base", {}, "103.576", "22.316", 103_576_028, 21_879_788_544),
    _row("Table 2", "nano", {}, "16.649", "3.812", 16_649_248, 3_705_574_400),
    _row("Table 2", "pico", {}, "9.55", "2.217", 9_550_476, 2_136_648_960),
    _row("Table 2", "femto", {}, "4.4", "1.049", 4_399_880, 996_078_080),
    _row(
        "Table 8",
        "nano",
        {"dw_dilations": (1,), **_PER_BRANCH},
        "16.907",
        "4.862",
        16_906_688,
        4_779_203_584,
    ),
    _row("Table 8", "nano", _PER_BRANCH, "19.33", "4.939", 19_330_400, 4_826_606_592),
    _row(
        "Table 8",
        "nano",
        {"gate": False, "layers": (1, 2, 3, 1)},
        "14.585",
        "3.473",
        14_584_528,
        3_372_313_600,
    ),
    _row("Table 8", "nano", {"mlp": "convnext"}, "17.025", "3.844", 17_024_944, 3_736_587_776),
)
