"""bilinear_sample: what MAT's patch embeddings sample between its stages."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import bilinear_sample
from hybrid_kernels.samples import Maker
from python_ref.ops import bilinear_sample as reference


def sample_case(name: str, group: str, size: tuple[int, ...], **options) -> Case:
    """A case on maps of `size` (batch, rows, columns, channels), offsets of about a pixel."""

    def build(make: Maker) -> tuple:
        B, H, W, C = sized_for(make.device, *size)
        return make.data(B, H, W, C), make.parameter(B, -(-H // 2), -(-W // 2), 2)

    return Case(name, group, build, **options)


def by_grid(x: Tensor, offset: Tensor) -> Tensor:
    """The library's formulation: the same points as a normalised grid."""
    height, width = x.shape[1:3]
    rows, columns = (torch.arange(n, device=x.device) for n in offset.shape[1:3])
    px = 2 * columns + 0.5 + offset[..., 0]
    py = 2 * rows[:, None] + 0.5 + offset[..., 1]
    grid = torch.stack([(px + 0.5) * 2 / width - 1, (py + 0.5) * 2 / height - 1], dim=-1)
    nchw = x.permute(0, 3, 1, 2).to(grid.dtype)  # grid_sample takes one dtype
    out = F.grid_sample(nchw, grid, align_corners=False, padding_mode="border")
    return out.permute(0, 2, 3, 1).to(x.dtype)


def min_bytes(x: Tensor, offset: Tensor) -> dict[str, int]:
    """Forward: x and offsets in, y out. Backward: x, offsets, the gradient of y in, theirs out."""
    y = tensor_bytes(x) // 4
    forward = tensor_bytes(x, offset) + y
    return {"forward": forward, "backward": forward + tensor_bytes(x, offset)}


BENCH = OpBench(
    op="bilinear_sample",
    fused=bilinear_sample,
    eager=reference,
    baselines={"grid_sample": by_grid},
    cases=(
        sample_case("MAT-5 stage 2", "224", (8, 56, 56, 64), quick=True),
        sample_case("MAT-5 stage 3", "224", (8, 28, 28, 128)),
        sample_case("MAT-5 stage 4", "224", (8, 14, 14, 256), quick=True),
        sample_case("MAT-3 stage 2, 800x1280", "dense", (1, 200, 320, 36)),
        sample_case("MAT-5 stage 3, 800x1333", "dense", (1, 100, 167, 128)),
    ),
    min_bytes=min_bytes,
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
