"""atrous_partition: cutting ACC-ViT's maps into windows, and back again as its backward."""

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels.ops import atrous_partition
from hybrid_kernels.samples import Maker
from python_ref.ops import atrous_partition as reference

WINDOW = 7


def partition_case(name: str, group: str, size: tuple[int, ...], dilation: int, **options) -> Case:
    """A case on a map of `size` (batch, rows, columns, channels), the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        return make.data(*sized_for(make.device, *size)), WINDOW, dilation, 0.0

    return Case(name, group, build, **options)


def min_bytes(x, window, dilation, fill) -> dict[str, int]:
    """The map in and the windows out, or the other way round; slots outside the map not counted."""
    return {"forward": 2 * tensor_bytes(x), "backward": 2 * tensor_bytes(x)}


BENCH = OpBench(
    op="atrous_partition",
    fused=atrous_partition,
    eager=reference,
    cases=(
        partition_case("stage 1, d 2", "tiling", (8, 56, 56, 192), 2),
        partition_case("stage 1, d 8", "tiling", (8, 56, 56, 192), 8, quick=True),
        partition_case("stage 2, d 4", "tiling", (8, 28, 28, 384), 4),
        partition_case("200x334, d 4", "ragged", (1, 200, 334, 192), 4, quick=True),
        partition_case("odd channels", "ragged", (4, 50, 84, 51), 2),
    ),
    min_bytes=min_bytes,
    limited_by="it is a copy, and the baselines copy, too: results of 4 MiB and more are written "
    "past the caches; pixels of odd channels fill no whole lines, and are not",
)

if __name__ == "__main__":
    run(BENCH)
