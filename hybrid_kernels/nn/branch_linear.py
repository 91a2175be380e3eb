"""Linear layers of parallel branches in few passes over memory."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.ops import branch_project_in as reference_project_in
from python_ref.ops import branch_project_out as reference_project_out


def branch_project_in(
    x: Tensor,
    norms: Sequence[nn.LayerNorm],
    linears: Sequence[nn.Linear],
) -> Tensor:
    """linear_k(norm_k(x)) of every branch: x (B, H, W, C) -> (B, H, W, n * D), branch-major.

    Branches share the statistics of x and differ in affine maps alone, which fold into the
    linear layers: W (gamma * x + beta) + b = (W diag(gamma)) x + (W beta + b). So the map is
    normalised once, and one matrix product writes all branches side by side.

    Subclassed or wrapped layers (adapters, quantisation) are not folded but called; hooks on
    plain ones do not run.
    """
    if not _is_plain(norms, nn.LayerNorm) or not _is_plain(linears, nn.Linear):
        return reference_project_in(x, norms, linears)
    normalised = F.layer_norm(x, x.shape[-1:], eps=norms[0].eps)
    weights, biases = [], []
    for norm, linear in zip(norms, linears, strict=True):
        weights.append(linear.weight * norm.weight)
        biases.append(linear.bias + (linear.weight * norm.bias).sum(dim=1))
    return F.linear(normalised, torch.cat(weights), torch.cat(biases))


def branch_project_out(x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """linear_k of branch k alone: x (B, H, W, n, D) -> n tensors (B, H, W, C).

    As matrices, the interleaved branches are read where they lie: PyTorch would otherwise add the
    bias in a pass of its own.
    """
    if not _is_plain(linears, nn.Linear):
        return reference_project_out(x, linears)
    size = x.shape[:3]
    return [
        F.linear(tokens, linear.weight, linear.bias).unflatten(0, size)
        for linear, tokens in zip(linears, x.flatten(0, 2).unbind(dim=1), strict=True)
    ]


def _is_plain(layers: Sequence[nn.Module], kind: type[nn.Module]) -> bool:
    return all(type(layer) is kind for layer in layers)
