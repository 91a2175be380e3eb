"""PartialFormer, chapter 5: the five variants, and one module by itself."""

from python_ref.published.mat import CONVENTION
from python_ref.published.row import Row

# Millions and billions as printed; exact parameters; deviation of the operations, None: it rounds.
_VARIANTS = (
    ("5.3", "0.4", 5_301_616, None),
    ("8.2", "0.7", 8_241_420, None),
    ("21.1", "1.9", 21_084_462, None),
    ("36.1", "3.4", 36_108_592, None),
    ("64.5", "6.8", 64_469_844, 0.012),
)

ROWS = (
    *(
        Row(
            "ImageNet-1K",
            f"partialformer_b{number}",
            paper_params=params,
            paper_macs=macs,
            params=exact,
            convention=CONVENTION,
            macs_within=within,
        )
        for number, (params, macs, exact, within) in enumerate(_VARIANTS)
    ),
    Row(
        "Sec. 5.3.4",
        "partialformer_b3",
        {"heads": (8, 8, 16, 32), "depths": (1, 0, 0, 0)},
        label="one partial attention, 56 x 56, 64 channels, 8 heads",
        paper_macs="0.0401",
        macs=40_108_416,
        under="mixer",
        note="fixes 49 foreground tokens in the first stage and two mixed heads per head",
    ),
)
