"""MCGA: the one published size."""

from python_ref.published.mat import CONVENTION
from python_ref.published.row import Row

ROWS = (
    Row(
        "ImageNet-1K",
        "mcga",
        paper_params="10.3",
        paper_macs="0.7",
        params=10_358_910,
        convention=CONVENTION,
        params_within=0.006,
        note="10.36 cut to one digit",
    ),
)
