"""Atrous attention with gated fusion, ACC-ViT Sec. 2.1 and 2.2."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from python_ref.layers.drop_path import DropPath
from python_ref.layers.gate import BranchGate
from python_ref.ops import REFERENCE, OpTable


class AtrousAttention(nn.Module):
    """x + sum_k g_k * DropPath(Proj_k(attention_k(QKV_k(LN_k(x))))), one branch per dilation.

    The gates g are a softmax over branches, per pixel and channel, computed from x.

    Args:
        dim: channels C.
        heads: attention heads h; C must be a multiple of h.
        dilations: one branch for each, in pixels.
        window: window side P, in slots.
        gate: False takes the mean of the branches; a single branch has no gate.
        scale_mode: "head" scales scores by (C / h)**-0.5, "width" by C**-0.5 (TorchVision's
            MaxViT; for weights imported from there).
        drop_path: rate of every branch.

    Raises:
        ValueError: heads does not divide dim, or scale_mode is unknown.
    """

    used_ops = ("atrous_attention", "gated_fuse", "branch_project_in", "branch_project_out")

    def __init__(
        self,
        dim: int,
        heads: int,
        dilations: Sequence[int] = (1, 2, 4, 8),
        window: int = 7,
        gate: bool = True,
        scale_mode: str = "head",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim = {dim}, got {heads}")
        if scale_mode not in ("head", "width"):
            raise ValueError(f"scale_mode must be 'head' or 'width', got {scale_mode!r}")
        self.ops: OpTable = REFERENCE
        self.heads, self.dilations, self.window = heads, tuple(dilations), window
        self.scale = (dim // heads if scale_mode == "head" else dim) ** -0.5
        branches = len(self.dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in dilations)
        self.qkvs = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in dilations)
        self.bias = nn.Parameter(torch.empty(branches, (2 * window - 1) ** 2, heads))
        self.projections = nn.ModuleList(nn.Linear(dim, dim) for _ in dilations)
        self.gate = BranchGate(branches, dim) if gate and branches > 1 else None
        self.drop_path = DropPath(drop_path)
        nn.init.trunc_normal_(self.bias, std=0.02)

    def attend(self, x: Tensor) -> list[Tensor]:
        """x (B, H, W, C) -> the projected attention of every branch, each (B, H, W, C)."""
        head_dim = x.shape[-1] // self.heads
        qkv = self.ops.branch_project_in(x, self.norms, self.qkvs)
        qkv = qkv.unflatten(-1, (len(self.dilations), 3, self.heads, head_dim))
        out = self.ops.atrous_attention(qkv, self.bias, self.dilations, self.window, self.scale)
        return self.ops.branch_project_out(out.flatten(-2), self.projections)

    def fuse(
        self, x: Tensor, branches: list[Tensor], scale: Tensor | None, residual: bool
    ) -> Tensor:
        """Mix branches (B, H, W, C) with gates computed from x."""
        weight = None if self.gate is None else self.gate.weight
        bias = None if self.gate is None else self.gate.bias
        return self.ops.gated_fuse(x, branches, weight, bias, scale, residual)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        # The gates sum to one, hence the residual of all branches collapses into a single x.
        scale = self.drop_path.factors(x, len(self.dilations))
        return self.fuse(x, self.attend(x), scale, residual=True)
