"""MSCSA, Table 6: the baselines, without MSCSA.

The figures are those of the baselines' own papers and of MSCSA's table.
"""

from python_ref.counting import CONVENTIONS
from python_ref.published.row import Row

# TopFormer's authors do not count the products of two activations.
_MODULES = CONVENTIONS["mmcv"] | {"attention": 0}

ROWS = (
    Row(
        "Table 6",
        "p2t_tiny",
        paper_params="11.6",
        paper_macs="1.8",
        params=11_590_840,
        macs=1_788_868_608,
        convention="mmcv",
    ),
    Row(
        "Table 6",
        "shunted_t",
        paper_params="11.5",
        paper_macs="2.1",
        params=11_553_576,
        macs=2_146_691_616,
        params_within=0.005,
        note="11.55 million, printed as 11.5",
    ),
    Row(
        "Table 6",
        "topformer_t",
        paper_params="1.5",
        paper_macs="0.126",
        params=1_502_888,
        macs=120_238_400,
        convention=_MODULES,
        macs_within=0.007,
        note="0.1269, printed as 0.126",
    ),
    Row(
        "Table 6",
        "topformer_b",
        paper_params="5.1",
        paper_macs="0.373",
        params=5_068_104,
        macs=364_354_432,
        convention=_MODULES,
    ),
    Row(
        "Table 6",
        "coat_tiny",
        paper_params="5.5",
        paper_macs="4.4",
        params=5_498_540,
        macs=4_316_447_208,
        convention="mmcv",
    ),
    Row(
        "Table 6",
        "coat_small",
        paper_params="22",
        paper_macs="12.6",
        params=21_693_908,
        macs=12_548_023_008,
        convention="mmcv",
    ),
    Row(
        "Table 6",
        "resnet18",
        paper_params="11.7",
        paper_macs="1.8",
        params=11_689_512,
        macs=1_814_073_344,
    ),
    Row(
        "Table 6",
        "resnet50",
        paper_params="25.6",
        paper_macs="4.1",
        params=25_557_032,
        macs=4_089_184_256,
    ),
    Row(
        "Table 6",
        "pvt_v2_b0",
        paper_params="3.7",
        paper_macs="0.57",
        params=3_666_760,
        macs=566_065_664,
    ),
    Row(
        "Table 6",
        "pvt_v2_b1",
        paper_params="14.0",
        paper_macs="2.1",
        params=14_009_000,
        macs=2_108_355_584,
    ),
    Row(
        "Table 6",
        "pvt_v2_b2",
        paper_params="25.4",
        paper_macs="4.0",
        params=25_362_856,
        macs=4_026_734_592,
    ),
    Row(
        "Table 6",
        "convnext_t",
        paper_params="28.6",
        paper_macs="4.5",
        params=28_589_128,
        macs=4_455_531_264,
    ),
)
