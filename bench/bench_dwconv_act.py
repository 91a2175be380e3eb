"""dwconv_act: the middle of the feed-forward layers of PVTv2 and MSCSA."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import dwconv_act
from hybrid_kernels.samples import Maker
from python_ref.ops import dwconv_act as reference
from python_ref.ops.activation import ACTIVATIONS


def act_case(name: str, group: str, size: tuple[int, ...], act: str, **options) -> Case:
    """A case on maps of `size` (batch, rows, columns, channels), the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        x = make.data(*sized_for(make.device, *size))
        return x, make.parameter(3, 3, size[3]), make.parameter(size[3]), act

    return Case(name, group, build, **options)


def channels_first(x: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
    """The convolution on a map (B, C, H, W) in that order of memory, and back."""
    nchw = x.permute(0, 3, 1, 2).contiguous()
    kernel = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
    out = F.conv2d(nchw, kernel, bias.to(x.dtype), padding=1, groups=x.shape[3])
    return ACTIVATIONS[act](out).permute(0, 2, 3, 1)


def min_bytes(x, weight, bias, act) -> dict[str, int]:
    """Forward: x in, y out. Backward: x and the gradient of y in, that of x out."""
    return {"forward": 2 * tensor_bytes(x), "backward": 3 * tensor_bytes(x)}


BENCH = OpBench(
    op="dwconv_act",
    fused=dwconv_act,
    eager=reference,
    baselines={"channels first": channels_first},
    cases=(
        act_case("PVTv2-B1 stage 1", "gelu", (2, 56, 56, 512), "gelu", quick=True),
        act_case("PVTv2-B1 stage 2", "gelu", (4, 28, 28, 1024), "gelu"),
        act_case("PVTv2-B1 stage 3", "gelu", (8, 14, 14, 1280), "gelu"),
        act_case("PVTv2-B1 stage 4", "gelu", (16, 7, 7, 2048), "gelu"),
        act_case("MSCSA, 25x40", "relu6", (2, 25, 40, 2048), "relu6", quick=True),
        act_case("convolution alone", "none", (4, 28, 28, 512), "none"),
        act_case("odd channels, 100x167", "gelu", (1, 100, 167, 251), "gelu"),
    ),
    min_bytes=min_bytes,
    limited_by=(
        "along a ring of rows the stencil's own loop: 89 % of the time in caches, converting "
        "pixels 11 % (perf, bfloat16); walks, which are faster, need pixels of no multiple of 2 KiB"
    ),
)

if __name__ == "__main__":
    run(BENCH)
