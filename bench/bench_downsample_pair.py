"""downsample_pair: the coarser scales of MSCSA's attention."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import downsample_pair
from hybrid_kernels.samples import Maker
from python_ref.ops import downsample_pair as reference


def pair_case(
    name: str, group: str, batch: int, size: tuple[int, int], channels: int, **options
) -> Case:
    """A grid of all stages; more images on a GPU."""

    def build(make: Maker) -> tuple:
        C = channels
        x, taps = make.data(*sized_for(make.device, batch, *size, C)), (3, 5)
        affine = (make.parameter(C), make.parameter(C)) if group == "folded" else (None, None)
        return x, *(make.parameter(k, k, C) for k in taps), *affine

    return Case(name, group, build, **options)


def channels_first(x: Tensor, weight3: Tensor, weight5: Tensor, scale, shift) -> list[Tensor]:
    """The convolutions on a map (B, C, H, W) in that order of memory, and back."""
    normed = x if scale is None else (scale * x + shift).to(x.dtype)
    nchw = normed.permute(0, 3, 1, 2).contiguous()
    maps = []
    for weight, stride in ((weight3, 2), (weight5, 3)):
        kernel = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
        y = F.conv2d(nchw, kernel, None, stride, weight.shape[0] // 2, groups=x.shape[3])
        maps.append(y.permute(0, 2, 3, 1))
    return maps


def min_bytes(x, weight3, weight5, scale, shift) -> dict[str, int]:
    """Forward: x in, the outputs out. Backward: their gradients and x in, that of x out."""
    B, H, W, C = x.shape
    outputs = sum(B * -(-H // s) * -(-W // s) * C for s in (2, 3)) * x.element_size()
    return {"forward": tensor_bytes(x) + outputs, "backward": 2 * tensor_bytes(x) + outputs}


BENCH = OpBench(
    op="downsample_pair",
    fused=downsample_pair,
    eager=reference,
    baselines={"channels first": channels_first},
    cases=(
        pair_case("PVTv2-B1, 224, batch 8", "plain", 8, (7, 7), 640, quick=True),
        pair_case("PVTv2-B1, 224, batch 32", "plain", 32, (7, 7), 640),
        pair_case("CoaT-Tiny, 224, batch 8", "plain", 8, (14, 14), 608),
        pair_case("PVTv2-B2, 800x1280", "plain", 2, (25, 40), 1024, quick=True),
        pair_case("PVTv2-B2, 800x1280, folded", "folded", 2, (25, 40), 1024),
    ),
    min_bytes=min_bytes,
    limited_by="instructions, not memory: a batch of equal images takes nearly as long",
)

if __name__ == "__main__":
    run(BENCH)
