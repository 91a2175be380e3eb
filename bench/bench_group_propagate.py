"""group_propagate: MCGA's pixels reading their groups, in its four stages."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import group_propagate
from hybrid_kernels.samples import Maker
from python_ref.ops import group_propagate as reference

GROUPS = 8


def stage_case(
    name: str, group: str, batch: int, shape: tuple[int, int, int], heads: int, **options
) -> Case:
    """A case on `batch` images (H, W, C), more on a GPU; tokens are slices of a projection."""

    def build(make: Maker) -> tuple:
        (images, *size), C = sized_for(make.device, batch, *shape), shape[2]
        convs = [t for k in (3, 5) for t in (make.parameter(k, k, C) / k, make.parameter(C))]
        kvs = (make.data(images, GROUPS, 2, heads, C // heads) for _ in range(2))
        return make.data(images, *size), *convs, *kvs, (C // heads) ** -0.5

    return Case(name, group, build, **options)


def sdpa_formulation(
    x: Tensor,
    w3: Tensor,
    b3: Tensor,
    w5: Tensor,
    b5: Tensor,
    kv3: Tensor,
    kv5: Tensor,
    scale: float,
) -> Tensor:
    """`conv2d` on channels-last memory, then `scaled_dot_product_attention`, branch by branch."""
    image, total = x.permute(0, 3, 1, 2), 0
    for weight, bias, kv in ((w3, b3, kv3), (w5, b5, kv5)):
        taps, side = weight.to(x.dtype).permute(2, 0, 1).unsqueeze(1), weight.shape[0]
        q = F.conv2d(image, taps, bias.to(x.dtype), padding=side // 2, groups=x.shape[3])
        q = q.permute(0, 2, 3, 1).flatten(1, 2).unflatten(-1, kv.shape[3:]).transpose(1, 2)
        key, value = (t.transpose(1, 2) for t in kv.unbind(2))
        total = total + F.scaled_dot_product_attention(q, key, value, scale=scale)
    return total.transpose(1, 2).reshape(x.shape)


def min_bytes(x, *_) -> dict[str, int]:
    """Forward: the map in, the result out. Backward: the map and the gradient of the result in,
    that of the map out. Tokens and taps are small."""
    return {"forward": 2 * tensor_bytes(x), "backward": 3 * tensor_bytes(x)}


BENCH = OpBench(
    op="group_propagate",
    fused=group_propagate,
    eager=reference,
    cases=(
        stage_case("stage 1, 224", "224", 8, (56, 56, 32), 2, quick=True),
        stage_case("stage 2, 224", "224", 8, (28, 28, 64), 2),
        stage_case("stage 3, 224", "224", 8, (14, 14, 128), 4, quick=True),
        stage_case("stage 4, 224", "224", 8, (7, 7, 256), 8),
        stage_case("stage 1, 1280x800", "dense", 1, (200, 320, 32), 2),
        stage_case("stage 3, 1280x800", "dense", 1, (50, 80, 128), 4),
    ),
    min_bytes=min_bytes,
    baselines={"conv2d and sdpa": sdpa_formulation},
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
