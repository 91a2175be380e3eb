"""The operators that accelerated mixers call, in the shape of `python_ref.ops.REFERENCE`."""

from dataclasses import replace

from python_ref.ops import REFERENCE

from ..ops import atrous_attention, gated_fuse
from .branch_linear import branch_project_in, branch_project_out
from .phase_dwconv import atrous_dwconv

# An operator that has no kernel yet stays the reference's.
FUSED = replace(
    REFERENCE,
    atrous_attention=atrous_attention,
    atrous_dwconv=atrous_dwconv,
    gated_fuse=gated_fuse,
    branch_project_in=branch_project_in,
    branch_project_out=branch_project_out,
)
