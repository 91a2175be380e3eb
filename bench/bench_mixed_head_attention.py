"""mixed_head_attention: the foreground tokens of PartialFormer."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import mixed_head_attention
from hybrid_kernels.samples import Maker
from python_ref.ops import mixed_head_attention_out as reference


def foreground_case(
    name: str, group: str, batch: int, tokens: int, heads: int, d: int = 16, **options
) -> Case:
    """A case on `batch` images, more on a GPU; queries, keys and values of one projection."""

    def build(make: Maker) -> tuple:
        images, mixed = sized_for(make.device, batch)[0], 2 * heads
        q, k, v = make.data(images, tokens, 3, heads, d).unbind(2)
        w1, b1 = make.data(mixed, heads) * heads**-0.5, make.data(mixed)
        w2, b2 = make.data(heads, mixed) * mixed**-0.5, make.data(heads)
        return q, k, v, w1, b1, w2, b2, d**-0.5

    return Case(name, group, build, **options)


def conv_formulation(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    """Products by `matmul`, both layers by 1x1 `conv2d` across heads."""
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    scores = (scale * query) @ key.transpose(2, 3)
    weights = F.conv2d(scores, w1[:, :, None, None], b1).softmax(dim=-1)
    return (F.conv2d(weights, w2[:, :, None, None], b2) @ value).transpose(1, 2)


def min_bytes(q, k, v, *_) -> dict[str, int]:
    """Forward: queries, keys and values in, outputs out. Backward: these and the gradient of the
    outputs in, three gradients out."""
    return {"forward": 4 * tensor_bytes(q), "backward": 7 * tensor_bytes(q)}


BENCH = OpBench(
    op="mixed_head_attention",
    fused=mixed_head_attention,
    eager=reference,
    cases=(
        foreground_case("B1 stage 1, 224", "224", 32, 50, 2),
        foreground_case("B1 stage 3, 224", "224", 32, 50, 8, quick=True),
        foreground_case("B1 stage 4, 224", "224", 32, 13, 16),
        foreground_case("B3 stage 1, 224", "224", 32, 50, 4),
        foreground_case("B3 stage 3, 224", "224", 32, 50, 16, quick=True),
        foreground_case("B3 stage 4, 224", "224", 32, 13, 32),
        foreground_case("B1 stage 1, 1280x800", "dense", 1, 1001, 2),
        foreground_case("B3 stage 1, 1280x800", "dense", 1, 1001, 4, quick=True),
        foreground_case("B3 stage 3, 1280x800", "dense", 1, 1001, 16),
        foreground_case("B3 stage 4, 1280x800", "dense", 1, 251, 32),
    ),
    min_bytes=min_bytes,
    baselines={"matmul and conv2d": conv_formulation},
    limited_by="products across heads for every score, in float32 at a third more than the rate "
    "of the library's GEMM; in bfloat16 they stay float32, where the library multiplies halves",
)

if __name__ == "__main__":
    run(BENCH)
