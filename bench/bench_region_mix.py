"""region_mix: the local mix of MRL's backbones, 3 x 3."""

import torch.nn.functional as F
from torch import Tensor

from bench.goals import TIER_1
from bench.main import run
from bench.op_bench import OpBench, tensor_bytes
from bench.region_stages import stage_cases
from hybrid_kernels import region_mix
from hybrid_kernels.samples import Maker
from python_ref.ops import region_mix as reference


def arguments(make: Maker, batch: int, side: int, channels: int, region: int) -> tuple:
    x = make.data(batch, side, side, channels)
    g = make.data(batch, side // region, side // region, channels)
    return x, g, make.parameter(3, 3, channels), region, None


def broadcast_sum(x: Tensor, g: Tensor, weight: Tensor, region: int, bias: Tensor | None) -> Tensor:
    """The sum by broadcasting over tiling regions, then a convolution with channels last."""
    blocks = x.unflatten(2, (-1, region)).unflatten(1, (-1, region))
    z = (blocks + g[:, :, None, :, None]).flatten(3, 4).flatten(1, 2)
    return convolve(z.permute(0, 3, 1, 2), weight, bias)


def channels_first(x: Tensor, g: Tensor, weight: Tensor, region: int, bias: Tensor | None):
    """The same with channels first from the start, as modules do it."""
    x, g = (t.permute(0, 3, 1, 2).contiguous() for t in (x, g))
    return convolve(x + F.interpolate(g, scale_factor=region), weight, bias)


def convolve(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernel = weight.to(z.dtype).permute(2, 0, 1).unsqueeze(1)
    return F.conv2d(z, kernel, bias, padding=1, groups=z.shape[1]).permute(0, 2, 3, 1)


def min_bytes(x: Tensor, g: Tensor, weight: Tensor, *_) -> dict[str, int]:
    """Forward: map and tokens in, map out. Backward: those and the output's gradient in, the
    gradients of map and tokens out. The kernels are small."""
    pixels, tokens = tensor_bytes(x), tensor_bytes(g)
    return {"forward": 2 * pixels + tokens, "backward": 3 * pixels + 2 * tokens}


BENCH = OpBench(
    op="region_mix",
    fused=region_mix,
    eager=reference,
    cases=stage_cases(arguments),
    min_bytes=min_bytes,
    baselines={"broadcast sum": broadcast_sum, "channels first": channels_first},
    goals=TIER_1,
    limited_by=(
        "cold reads, and on small maps the fixed cost of a call; in bfloat16 the "
        "conversions of every pixel"
    ),
)

if __name__ == "__main__":
    run(BENCH)
