"""Atrous inverted residual convolution, ACC-ViT Sec. 2.4, Eq. 3."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_ref.layers.drop_path import DropPath
from python_ref.layers.gate import BranchGate
from python_ref.layers.layout import to_nchw, to_nhwc
from python_ref.layers.norm import Fold, batch_norm
from python_ref.layers.squeeze_excite import SqueezeExcite
from python_ref.ops import REFERENCE, OpTable


class AtrousInvertedResidual(nn.Module):
    """MBConv whose depthwise 3x3 is replaced by dilated ones, excited and mixed by a gate.

    r + DropPath(BN(Conv1x1(sum_k g_k * SE_k(u_k)))), where u_k are the depthwise branches of the
    expanded map and the gate g looks at that map at the output positions.

    Args:
        dim_in: input channels.
        dim: output channels C; the expanded map has 4C, the squeezed one C / 4.
        stride: 1 or 2; with 2 the shortcut is averaged and projected.
        dilations: of the depthwise branches; (1,) is the ordinary MBConv.
        gate: False takes the mean of the branches.
        drop_path: rate of the residual branch.
    """

    used_ops = ("atrous_dwconv", "gated_fuse")
    folds = (
        Fold("norm_in", before="expand"),
        Fold("norm_expanded", after="expand"),
        Fold("norm_out", after="project"),
    )

    def __init__(
        self,
        dim_in: int,
        dim: int,
        stride: int = 1,
        dilations: Sequence[int] = (1, 2, 3),
        gate: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.ops: OpTable = REFERENCE
        self.stride, self.dilations = stride, tuple(dilations)
        expanded = 4 * dim
        self.shortcut = nn.Identity()
        if stride > 1 or dim_in != dim:
            pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(dim_in, dim, 1))
        self.norm_in = batch_norm(dim_in)
        self.expand = nn.Conv2d(dim_in, expanded, 1, bias=False)
        self.norm_expanded = batch_norm(expanded)
        self.depthwise = nn.Parameter(torch.empty(len(dilations), expanded, 3, 3))
        self.norms_depthwise = nn.ModuleList(batch_norm(expanded) for _ in dilations)
        self.squeeze_excites = nn.ModuleList(SqueezeExcite(expanded, dim // 4) for _ in dilations)
        gated = gate and len(dilations) > 1
        self.gate = BranchGate(len(dilations), expanded) if gated else None
        self.project = nn.Conv2d(expanded, dim, 1)
        self.norm_out = batch_norm(dim)
        self.drop_path = DropPath(drop_path)
        nn.init.normal_(self.depthwise, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim_in, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        y = to_nhwc(F.gelu(self.norm_expanded(self.expand(self.norm_in(x)))))
        maps = self.ops.atrous_dwconv(y, self.depthwise, self.dilations, self.stride)
        branches = [
            F.gelu(to_nhwc(norm(to_nchw(u))))
            for norm, u in zip(self.norms_depthwise, maps, strict=True)
        ]
        excitations = [
            excite.factors(u) for excite, u in zip(self.squeeze_excites, branches, strict=True)
        ]
        z = self.ops.gated_fuse(
            y[:, :: self.stride, :: self.stride],  # the common centre tap of the convolutions
            branches,
            None if self.gate is None else self.gate.weight,
            None if self.gate is None else self.gate.bias,
            torch.stack(excitations, dim=1),
            False,
        )
        z = self.norm_out(self.project(to_nchw(z)))
        return self.shortcut(x) + self.drop_path(z)
