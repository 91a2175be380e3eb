"""gated_fuse: mixing the branches of ACC-ViT's attention blocks and of its convolution blocks."""

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels.ops import gated_fuse
from hybrid_kernels.samples import Maker
from python_ref.ops import gated_fuse as reference


def fuse_case(
    name: str,
    group: str,
    size: tuple[int, ...],
    branches: int,
    convolution: bool = False,
    **options,
) -> Case:
    """A case on maps of `size` (batch, rows, columns, channels), the batch larger on a GPU.

    An attention block adds its input and has no scale; a convolution block scales every branch and
    channel by squeeze-excitation and adds nothing.
    """

    def build(make: Maker) -> tuple:
        batch, *rest = sized_for(make.device, *size)
        x, *m = (make.data(batch, *rest) for _ in range(branches + 1))
        weight, bias = make.parameter(branches, size[3]), make.parameter(branches, size[3])
        scale = make.parameter(batch, branches, size[3]) if convolution else None
        return x, m, weight, bias, scale, not convolution

    return Case(name, group, build, **options)


def min_bytes(x, m, weight, bias, scale, residual) -> dict[str, int]:
    """Forward: x and the branches in, y out. Backward: those two and the gradient of y in, the
    gradients of x and of the branches out. The parameters are small."""
    maps = tensor_bytes(x, *m)
    return {"forward": maps + tensor_bytes(x), "backward": 2 * maps + tensor_bytes(x)}


BENCH = OpBench(
    op="gated_fuse",
    fused=gated_fuse,
    eager=reference,
    cases=(
        fuse_case("attention, stage 1", "attention", (8, 56, 56, 64), 4, quick=True),
        fuse_case("attention, stage 2", "attention", (8, 28, 28, 128), 3),
        fuse_case("attention, stage 3", "attention", (8, 14, 14, 256), 2),
        fuse_case("convolution, stage 1", "convolution", (4, 56, 56, 256), 3, True, quick=True),
        fuse_case("convolution, stage 2", "convolution", (4, 28, 28, 512), 3, True),
        fuse_case("attention, 200x334", "attention", (1, 200, 334, 64), 4),
    ),
    min_bytes=min_bytes,
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
