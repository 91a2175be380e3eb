"""Swin: Table 1 of its paper. MRL-Swin, whose counts on ImageNet are not printed, beside it.

Detection with both is in `dense`.
"""

from python_ref.published.row import Row

ROWS = (
    Row(
        "Table 1",
        "swin_t",
        paper_params="29",
        paper_macs="4.5",
        params=28_288_354,
        macs=4_490_566_656,
        params_within=0.025,
        note="28.3 million in the authors' tables elsewhere",
    ),
    Row(
        "Table 1",
        "swin_s",
        paper_params="50",
        paper_macs="8.7",
        params=49_606_258,
        macs=8_740_875_264,
    ),
    Row(
        "MSCSA, Table 6",
        "swin_t",
        paper_params="28.3",
        paper_macs="4.4",
        convention="modules",
        params=28_288_354,
        macs=4_490_566_656,
    ),
    Row("MRL, Sec. 4.2", "mrl_swin_t", params=30_512_584, macs=3_768_163_968),
    Row("MRL, Sec. 4.2", "mrl_swin_s", params=53_658_568, macs=7_267_488_384),
)
