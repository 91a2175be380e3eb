"""Parameters of the gated fusion, ACC-ViT Sec. 2.2."""

import torch
from torch import nn


class BranchGate(nn.Module):
    """One weight and one bias per branch and channel; `gated_fuse` applies them.

    The same as a depthwise 1x1 convolution C -> n * C, whose output channel c * n + k is row k,
    column c here.
    """

    def __init__(self, branches: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(branches, dim))
        self.bias = nn.Parameter(torch.zeros(branches, dim))
        nn.init.normal_(self.weight, std=0.02)
