"""pool_cat: the maps of all stages brought to one grid, as MSCSA does before its attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels.ops import pool_cat
from hybrid_kernels.samples import Maker
from python_ref.ops import pool_cat as reference


def pool_case(
    name: str, group: str, batch: int, size: tuple[int, int], widths: tuple[int, ...], **options
) -> Case:
    """Maps of strides 4, 8, ... of an image of `size`, brought to the coarsest; more on a GPU."""

    def build(make: Maker) -> tuple:
        (images,) = sized_for(make.device, batch)
        sizes = [[-(-n // (4 << k)) for n in size] for k in range(len(widths))]
        xs = [make.data(images, *s, c) for s, c in zip(sizes, widths, strict=True)]
        return xs, *sizes[-1]

    return Case(name, group, build, **options)


def min_bytes(xs, height, width) -> dict[str, int]:
    """Forward: the maps in, the grid out; backward: the other way round."""
    grid = xs[0].shape[0] * height * width * sum(x.shape[3] for x in xs) * xs[0].element_size()
    total = tensor_bytes(*xs) + grid
    return {"forward": total, "backward": total}


def by_strides(xs: list[Tensor], height: int, width: int) -> Tensor:
    """Plain average pooling, which has a faster kernel, where the sizes divide."""
    maps = []
    for x in xs:
        rows, columns = x.shape[1] // height, x.shape[2] // width
        divides = (rows * height, columns * width) == tuple(x.shape[1:3])
        nchw = x.permute(0, 3, 1, 2)
        pooled = (
            F.avg_pool2d(nchw, (rows, columns))
            if divides
            else F.adaptive_avg_pool2d(nchw, (height, width))
        )
        maps.append(pooled.permute(0, 2, 3, 1))
    return torch.cat(maps, dim=3)


WIDTHS = (64, 128, 320, 512)  # PVTv2-B1

BENCH = OpBench(
    op="pool_cat",
    fused=pool_cat,
    eager=reference,
    cases=(
        pool_case("224x224, batch 8", "dividing", 8, (224, 224), WIDTHS, quick=True),
        pool_case("512x512", "dividing", 2, (512, 512), WIDTHS),
        pool_case("800x1280", "dividing", 1, (800, 1280), WIDTHS),
        pool_case("334x500", "ragged", 2, (334, 500), WIDTHS, quick=True),
    ),
    min_bytes=min_bytes,
    baselines={"avg_pool": by_strides},
    limited_by="memory: forward at three quarters of the copy rate; the float32 backward, which "
    "writes all maps, at half to two thirds, through the caches or past them",
)

if __name__ == "__main__":
    run(BENCH)
