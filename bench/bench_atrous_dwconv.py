"""atrous_dwconv: the dilated branches of ACC-ViT's convolution blocks."""

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import atrous_dwconv
from hybrid_kernels.samples import Maker
from python_ref.ops import atrous_dwconv as reference

DILATIONS = [1, 2, 3]


def dilated_case(name: str, group: str, size: tuple[int, ...], stride: int, **options) -> Case:
    """A case on maps of `size` (batch, rows, columns, channels), the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        x = make.data(*sized_for(make.device, *size))
        return x, make.parameter(len(DILATIONS), size[3], 3, 3), DILATIONS, stride

    return Case(name, group, build, **options)


def min_bytes(x, weight, dilations, stride) -> dict[str, int]:
    """Forward: x in, the branches out. Backward: x and their gradients in, that of x out."""
    maps = len(dilations) * tensor_bytes(x) // stride**2
    return {"forward": tensor_bytes(x) + maps, "backward": 2 * tensor_bytes(x) + maps}


BENCH = OpBench(
    op="atrous_dwconv",
    fused=atrous_dwconv,
    eager=reference,
    cases=(
        dilated_case("stage 1, 224", "stride 1", (2, 56, 56, 256), 1, quick=True),
        dilated_case("stage 2, 224", "stride 1", (4, 28, 28, 512), 1),
        dilated_case("stage 3, 224", "stride 1", (4, 14, 14, 1024), 1),
        dilated_case("stage 1, first block", "stride 2", (2, 112, 112, 256), 2, quick=True),
        dilated_case("stage 2, first block", "stride 2", (4, 56, 56, 512), 2),
        dilated_case("stage 1, 200x334", "stride 1", (1, 200, 334, 256), 1),
    ),
    min_bytes=min_bytes,
    limited_by=(
        "the stencil's own loop: 9.5 cycles per vector of results where its fmas need 4.5; "
        "converting a vector of pixels takes 1.3 (the loops alone, in caches, bfloat16)"
    ),
)

if __name__ == "__main__":
    run(BENCH)
