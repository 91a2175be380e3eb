"""centred_dwconv: EMSNet's whitening after its matrix product."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import centred_dwconv
from hybrid_kernels.samples import Maker
from python_ref.ops import centred_dwconv_out as reference

# Name and size (batch, rows, columns, channels) of the static halves of EMSNet-Tiny's stages.
STAGES = {
    "stage 1": (8, 56, 56, 32),
    "stage 2": (8, 28, 28, 48),
    "stage 3": (8, 14, 14, 64),
    "stage 4": (8, 7, 7, 128),
    "stage 1, 1280x800": (1, 200, 320, 32),
    "odd channels, 50x81": (2, 50, 81, 37),
}


def centred_case(name: str, size: tuple[int, ...]) -> Case:
    """On maps of `size`, the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        return make.data(*sized_for(make.device, *size)) + 1, make.parameter(3, 3, size[3])

    return Case(name, "EMSNet-Tiny", build, quick=name.startswith("stage 1"))


def channels_first(x: Tensor, weight: Tensor) -> Tensor:
    """The mean and the convolution on a map (B, C, H, W) in that order of memory, and back."""
    nchw = x.permute(0, 3, 1, 2).contiguous()
    kernel = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
    centred = nchw - nchw.mean(dim=(2, 3), keepdim=True)
    return F.conv2d(centred, kernel, padding=1, groups=x.shape[3]).permute(0, 2, 3, 1)


def min_bytes(x, weight) -> dict[str, int]:
    """Had the caches room for an image. Forward: x in, y out. Backward: x and the gradient of y in,
    that of x out."""
    return {"forward": 2 * tensor_bytes(x), "backward": 3 * tensor_bytes(x)}


BENCH = OpBench(
    op="centred_dwconv",
    fused=centred_dwconv,
    eager=reference,
    baselines={"channels first": channels_first},
    cases=tuple(centred_case(name, size) for name, size in STAGES.items()),
    min_bytes=min_bytes,
    limited_by=(
        "of the forward on maps of 224 pixels, a fifth is the call through autograd and a fifth "
        "the sums before the stencil, which waits for them; the rest is the plain stencil's"
    ),
)

if __name__ == "__main__":
    run(BENCH)
