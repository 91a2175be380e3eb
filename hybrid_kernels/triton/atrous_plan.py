"""Sizes of one call of atrous attention, and how its windows are cut into programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, settings


@dataclass(frozen=True)
class Plan:
    """Sizes of one call, and how its windows are cut into shares."""

    B: int
    H: int
    W: int
    heads: int
    head_dim: int
    window: int
    dilations: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, qkv: Tensor, dilations: Sequence[int], window: int) -> Plan:
        B, H, W, _, _, heads, head_dim = qkv.shape
        check_dtype("qkv", qkv)
        # From the size of the map on, every dilation puts each pixel into a window of its own.
        dilations = tuple(min(d, max(H, W, 1)) for d in dilations)
        plan = cls(B, H, W, heads, head_dim, window, dilations, qkv.dtype, qkv.device)
        check_index("windows of a branch", max(plan.windows))
        return plan

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a tensor with one value for every token, branch and head."""
        return (self.B, self.H, self.W, len(self.dilations), self.heads)

    @property
    def windows(self) -> list[int]:
        """Windows of every branch over all images: what `share` counts in the kernel."""
        return [
            self.B
            * (min(self.H, d) * triton.cdiv(self.H, self.window * d))
            * (min(self.W, d) * triton.cdiv(self.W, self.window * d))
            for d in self.dilations
        ]

    def settings(self, kernel: str) -> Settings:
        """Launch settings of a kernel; no tile is larger than the window needs."""
        bits = torch.finfo(self.dtype).bits
        chosen = settings(kernel, f"{bits}-bit, e <= {self.channels}", self.device)
        tile = max(16, triton.next_power_of_2(self.window**2))
        return {**chosen, "TILE": min(chosen["TILE"], tile)}

    @property
    def channels(self) -> int:
        """The head width as the matrix units take it: a power of two, at least 16."""
        return max(16, triton.next_power_of_2(self.head_dim))

    def tiles(self, chosen: Settings) -> int:
        """Tiles of slots that cover a window."""
        return triton.cdiv(self.window**2, chosen["TILE"])

    def cut(self, programs: int) -> tuple[int, int]:
        """Windows per share, and the number of shares, for about as many programs as wanted."""
        per_share = max(1, triton.cdiv(sum(self.windows) * self.heads, max(1, programs)))
        return per_share, sum(triton.cdiv(w, per_share) for w in self.windows) * self.heads

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.B, self.H, self.W, self.heads

    def constants(self, *tensors: Tensor) -> dict[str, Any]:
        """What the kernels are compiled for, given the tensors (B, H, W, ...) that they index."""
        side = self.window * max(self.dilations)
        reach = max(side * (t.stride(1) + t.stride(2)) + 128 * t.stride(-1) for t in tensors)
        return {
            "DILATIONS": self.dilations,
            "WINDOW": self.window,
            "RAGGED": any(n % (self.window * d) for n in (self.H, self.W) for d in self.dilations),
            "INDEX": tl.int32 if reach < 2**31 else tl.int64,
            "HEAD_DIM": self.head_dim,
            "CHANNELS": self.channels,
        }
