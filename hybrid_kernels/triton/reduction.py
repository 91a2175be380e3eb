"""The second stage of deterministic reductions: partial sums added in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch, settings


@triton.jit(do_not_specialize=["terms"])
def fold(
    partial,  # (groups, terms, columns)
    out,  # (groups, columns)
    terms,
    columns,
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    blocks = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    group = (program // blocks).to(tl.int64)
    column = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    partial += group * terms * columns
    total = tl.zeros((TERMS, COLUMNS), tl.float32)
    for first in range(0, terms, TERMS):
        term = first + tl.arange(0, TERMS)
        mask = (term < terms)[:, None] & (column < columns)[None, :]
        where = term.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(partial + where, mask=mask, other=0.0)
    tl.store(out + group * columns + column, tl.sum(total, axis=0), mask=column < columns)


def fold_terms(partial: Tensor) -> Tensor:
    """Sum a contiguous (groups, terms, columns) over its terms, (groups, columns); both float32."""
    groups, terms, columns = partial.shape
    out = torch.empty((groups, columns), dtype=torch.float32, device=partial.device)
    chosen = settings("reduction.fold", "32-bit", partial.device)
    programs = groups * triton.cdiv(columns, chosen["COLUMNS"])
    launch(fold, programs, out, partial, out, terms, columns, **chosen)
    return out
