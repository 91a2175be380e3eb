"""whiten_conv: the first step of EMSNet's static branch, with its matrix product."""

import torch.nn.functional as F
from torch import Tensor

from bench.bench_centred_dwconv import STAGES
from bench.bench_centred_dwconv import channels_first as centred_channels_first
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels.nn import whiten_conv
from hybrid_kernels.samples import Maker
from python_ref.ops import whiten_conv as reference
from python_ref.ops.depthwise import depthwise


def whiten_case(name: str, size: tuple[int, ...]) -> Case:
    """On maps of `size` (batch, rows, columns, channels), the batch larger on a GPU."""
    C = size[3]

    def build(make: Maker) -> tuple:
        x = make.data(*sized_for(make.device, *size))
        return x, make.data(C, C) / C**0.5, make.parameter(3, 3, C), "spatial"

    return Case(name, "EMSNet-Tiny", build, quick=name.startswith("stage 1"))


def channels_first(x: Tensor, weight: Tensor, dw_weight: Tensor, axis: str) -> Tensor:
    """The mean and the convolution on a map (B, C, H, W) in that order of memory, and back."""
    return centred_channels_first(F.linear(x, weight), dw_weight)


def centred_first(x: Tensor, weight: Tensor, dw_weight: Tensor, axis: str) -> Tensor:
    """The mean taken from the input of the product instead of its output."""
    u = F.linear(x - x.mean(dim=(1, 2), keepdim=True), weight)
    return depthwise(u, dw_weight)


def min_bytes(x, weight, dw_weight, axis) -> dict[str, int]:
    """With the product's result in memory, and means of what has to be read anyway. Forward: x in,
    u out and in, y out. Backward: the gradient of y and u in, that of u out and, by the two
    products, twice in, x in, its gradient out."""
    return {"forward": 4 * tensor_bytes(x), "backward": 7 * tensor_bytes(x)}


BENCH = OpBench(
    op="whiten_conv",
    fused=whiten_conv,
    eager=reference,
    baselines={"channels first": channels_first, "centred first": centred_first},
    cases=tuple(whiten_case(name, size) for name, size in STAGES.items()),
    min_bytes=min_bytes,
    limited_by=(
        "the library's 1x1, two thirds of the forward in float32, where it runs at the full rate "
        "of its products: what is left for the kernels is `centred_dwconv`"
    ),
)

if __name__ == "__main__":
    run(BENCH)
