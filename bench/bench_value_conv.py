"""value_conv: the parallel convolution path of MSCSA's attention."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import value_conv
from hybrid_kernels.samples import Maker
from python_ref.ops import value_conv as reference


def path_case(
    name: str, group: str, batch: int, size: tuple[int, int], heads: int, width: int, **options
) -> Case:
    """Heads of queries and keys of `width`, and of values twice as wide, from one projection."""

    def build(make: Maker) -> tuple:
        (images, *rest), V = sized_for(make.device, batch, *size), 2 * heads * width
        out, v = make.data(images, *rest, V), make.data(images, *rest, 2 * V)[..., V:]
        # A small scale keeps z off the corners of the activation, where rounding decides.
        affine = (0.1 * make.parameter(V), 0.1 * make.parameter(V))
        affine = affine if group == "inference" else (None, None)
        return out, v, make.parameter(3, 3, V), make.parameter(V), *affine

    return Case(name, group, build, **options)


def channels_first(out: Tensor, v: Tensor, weight, bias, scale, shift) -> Tensor:
    """The convolution on a map (B, C, H, W) in that order of memory, and back."""
    nchw = F.hardswish(v.permute(0, 3, 1, 2).contiguous())
    kernel = weight.to(v.dtype).permute(2, 0, 1).unsqueeze(1)
    path = F.conv2d(nchw, kernel, bias.to(v.dtype), padding=1, groups=v.shape[3])
    z = out + path.permute(0, 2, 3, 1)
    return z if scale is None else F.hardswish((scale * z + shift).to(z.dtype))


def min_bytes(out, v, weight, bias, scale, shift) -> dict[str, int]:
    """Forward: out and v in, the result out. Backward: the gradient and v in, that of v out; with
    a norm also out in, and its gradient out."""
    maps = 3 if scale is None else 5
    return {"forward": 3 * tensor_bytes(out), "backward": maps * tensor_bytes(out)}


BENCH = OpBench(
    op="value_conv",
    fused=value_conv,
    eager=reference,
    baselines={"channels first": channels_first},
    cases=(
        path_case("PVTv2-B1, 224, batch 8", "training", 8, (7, 7), 8, 24, quick=True),
        path_case("PVTv2-B1, 224, batch 32", "training", 32, (7, 7), 8, 24),
        path_case("CoaT-Tiny, 224, batch 8", "training", 8, (14, 14), 8, 22),
        path_case("PVTv2-B2, 800x1280", "training", 2, (25, 40), 8, 35, quick=True),
        path_case("PVTv2-B2, 800x1280, folded", "inference", 2, (25, 40), 8, 35),
        path_case("Swin-T, 224, batch 16, folded", "inference", 16, (7, 7), 12, 28),
    ),
    min_bytes=min_bytes,
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
