"""token_fusion: MAT's pixels reading abstract tokens, and MCGA's reading their groups."""

import torch.nn.functional as F
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import token_fusion
from hybrid_kernels.samples import Maker
from python_ref.ops import token_fusion as reference


def fusion_case(
    name: str, group: str, batch: int, pixels: int, tokens: int, heads: int, d: int, **options
) -> Case:
    """A case on `batch` images, more on a GPU; queries are a slice of a projection."""

    def build(make: Maker) -> tuple:
        images = sized_for(make.device, batch)[0]
        q = make.data(images, pixels, 3, heads, d)[:, :, 0]
        kv, y = make.data(images, tokens, 2, heads, d), make.data(images, pixels, heads, d)
        return q, kv, y, d**-0.5

    return Case(name, group, build, **options)


def sdpa_formulation(q: Tensor, kv: Tensor, y: Tensor, scale: float) -> Tensor:
    """`scaled_dot_product_attention`, then the addition."""
    heads_first = (t.transpose(1, 2) for t in (q, *kv.unbind(2)))
    return y + F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)


def min_bytes(q, kv, y, scale) -> dict[str, int]:
    """Forward: queries and y in, z out. Backward: queries and the gradient of z in, that of the
    queries out. The tokens are small."""
    return {"forward": 3 * tensor_bytes(q), "backward": 3 * tensor_bytes(q)}


BENCH = OpBench(
    op="token_fusion",
    fused=token_fusion,
    eager=reference,
    cases=(
        fusion_case("MAT-5 stage 3, 224", "224", 32, 196, 4, 16, 16, quick=True),
        fusion_case("MAT-5 stage 4, 448", "448", 8, 196, 4, 32, 16),
        fusion_case("MCGA stage 1, 224", "224", 32, 3136, 8, 2, 16, quick=True),
        fusion_case("MAT-5 stage 3, 1280x800", "dense", 1, 4000, 96, 16, 16),
        fusion_case("MAT-5 stage 4, 1280x800", "dense", 1, 1000, 24, 32, 16),
    ),
    min_bytes=min_bytes,
    baselines={"sdpa": sdpa_formulation},
    limited_by="not profiled yet",
)

if __name__ == "__main__":
    run(BENCH)
