"""Linear layers of parallel branches: every branch has its own norm, projection and weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def branch_project_in(
    x: Tensor,
    norms: Sequence[nn.LayerNorm],
    linears: Sequence[nn.Linear],
) -> Tensor:
    """linear_k(norm_k(x)) of every branch: x (B, H, W, C) -> (B, H, W, n * D), branch-major."""
    branches = [linear(norm(x)) for norm, linear in zip(norms, linears, strict=True)]
    return torch.cat(branches, dim=-1)


def branch_project_out(x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """linear_k of branch k alone: x (B, H, W, n, D) -> n tensors (B, H, W, C)."""
    return [linear(branch) for linear, branch in zip(linears, x.unbind(dim=3), strict=True)]
