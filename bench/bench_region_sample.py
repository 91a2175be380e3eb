"""region_sample: the down-sampling of regions in MRL's backbones."""

import torch.nn.functional as F
from torch import Tensor

from bench.goals import TIER_1
from bench.main import run
from bench.op_bench import OpBench, tensor_bytes
from bench.region_stages import stage_cases
from hybrid_kernels import region_sample
from hybrid_kernels.samples import Maker
from python_ref.ops import region_sample as reference


def arguments(make: Maker, batch: int, side: int, channels: int, region: int) -> tuple:
    x = make.data(batch, side, side, channels)
    return x, make.parameter(region, region, channels), None


def channels_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution on a map that is copied to channels first, as a module would do it."""
    kernel = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1)
    x = x.permute(0, 3, 1, 2).contiguous()
    s = F.conv2d(x, kernel, bias, stride=weight.shape[0], groups=x.shape[1])
    return s.permute(0, 2, 3, 1)


def weighted_sum(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as a product and a sum over the pixels of tiling regions."""
    region = weight.shape[0]
    blocks = x.unflatten(2, (-1, region)).unflatten(1, (-1, region))
    return (blocks * weight.to(x.dtype)[:, None]).sum(dim=(2, 4))


def min_bytes(x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, int]:
    """Forward: the map in, tokens out. Backward: the map and the tokens' gradient in, the map's
    out. The kernels are small."""
    tokens = tensor_bytes(x) // weight.shape[0] ** 2
    return {"forward": tensor_bytes(x) + tokens, "backward": 2 * tensor_bytes(x) + tokens}


BENCH = OpBench(
    op="region_sample",
    fused=region_sample,
    eager=reference,
    cases=stage_cases(arguments),
    min_bytes=min_bytes,
    baselines={"channels first": channels_first, "weighted sum": weighted_sum},
    goals=TIER_1,
    limited_by="cold reads, and on small maps the fixed cost of a call: forward and backward of "
    "2 x 4 x 4 pixels take 0.04 ms, with cold caches 0.3 ms; in bfloat16 conversions, too",
)

if __name__ == "__main__":
    run(BENCH)
