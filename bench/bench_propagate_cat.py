"""propagate_cat: tokens spread and joined with maps, as EMSNet's branches gather their scales."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import propagate_cat
from hybrid_kernels.samples import Maker
from python_ref.ops import propagate

# Name and size (batch, rows, columns, channels of half a map) of EMSNet-Tiny's stages.
STAGES = {
    "stage 1": (8, 56, 56, 32),
    "stage 2": (8, 28, 28, 48),
    "stage 3": (8, 14, 14, 64),
    "stage 4": (8, 7, 7, 128),
    "stage 1, 1280x800": (1, 200, 320, 32),
}
# Sides of the patches, 0 of what has pixels; each part has half of the channels.
BRANCHES = {"static": (2, 0, 4), "dynamic": (4, 6)}


def make_parts(make: Maker, stage: str, branch: str) -> tuple[list[Tensor], list, int, int]:
    """maps, kernels, height, width; the batch is larger on a GPU."""
    B, H, W, C = sized_for(make.device, *STAGES[stage])
    patches = BRANCHES[branch]
    sizes = [(-(-H // p), -(-W // p)) if p else (H, W) for p in patches]
    maps = [make.data(B, *size, C // 2) for size in sizes]
    return maps, [make.parameter(p, p, C // 2) if p else None for p in patches], H, W


def joined_case(stage: str, branch: str) -> Case:
    return Case(
        f"{stage}, {branch}",
        branch,
        lambda make: make_parts(make, stage, branch),
        quick=stage.startswith("stage 1"),
    )


def eager(maps: Sequence[Tensor], kernels: Sequence, height: int, width: int) -> Tensor:
    """Transposed convolutions and a concatenation."""
    parts = [
        z if kernel is None else propagate(z, kernel.to(z.dtype), height, width)
        for z, kernel in zip(maps, kernels, strict=True)
    ]
    return torch.cat(parts, dim=3)


def broadcast(maps: Sequence[Tensor], kernels: Sequence, height: int, width: int) -> Tensor:
    """Tokens spread by a broadcast product instead of a transposed convolution."""
    parts = []
    for z, kernel in zip(maps, kernels, strict=True):
        if kernel is not None:
            cells = z[:, :, None, :, None] * kernel[:, None].to(z.dtype)
            z = cells.flatten(3, 4).flatten(1, 2)[:, :height, :width]
        parts.append(z)
    return torch.cat(parts, dim=3)


def min_bytes(maps, kernels, height, width) -> dict[str, int]:
    """Forward: maps in, the joined one out. Backward: its gradient and tokens in, theirs out."""
    given = sum(tensor_bytes(z) for z in maps)
    channels = sum(z.shape[3] for z in maps)
    y = maps[0].shape[0] * height * width * channels * maps[0].element_size()
    tokens = sum(tensor_bytes(z) for z, k in zip(maps, kernels, strict=True) if k is not None)
    return {"forward": given + y, "backward": y + tokens + given}


BENCH = OpBench(
    op="propagate_cat",
    fused=propagate_cat,
    eager=eager,
    baselines={"broadcast": broadcast},
    cases=tuple(joined_case(stage, branch) for branch in BRANCHES for stage in STAGES),
    min_bytes=min_bytes,
    limited_by=(
        "backward: pieces of pixels read from memory; of stage 1 in float32 one thread takes 0.17 "
        "ms with warm caches, two take 0.8 ms with cold ones"
    ),
)

if __name__ == "__main__":
    run(BENCH)
