"""single_query_attention: PartialFormer's single query, MCGA's eight, attention pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.goals import TIER_1
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import single_query_attention
from hybrid_kernels.samples import Maker
from python_ref.ops import single_query_attention_out


def attention_case(
    name: str,
    group: str,
    batch: int,
    tokens: int,
    queries: int,
    heads: int,
    d: int,
    excluded: int = 0,
    **options: bool,
) -> Case:
    """A case on `batch` images, more on a GPU. Without excluded tokens the images share queries.

    Keys and values are slices of one projection, as in the models.
    """

    def build(make: Maker) -> tuple:
        images = sized_for(make.device, batch)[0]
        query = make.data(queries, heads, d)
        exclude = None
        if excluded:
            query = make.data(images, queries, heads, d)
            exclude = torch.arange(0, tokens, tokens // excluded, device=make.device)[:excluded]
            exclude = exclude.int().expand(images, -1).contiguous()
        k, v = make.data(images, tokens, 2, heads, d).unbind(2)
        return query, k, v, d**-0.5, exclude

    return Case(name, group, build, **options)


def sdpa_formulation(
    query: Tensor, k: Tensor, v: Tensor, scale: float, exclude: Tensor | None
) -> Tensor:
    """`scaled_dot_product_attention`, the excluded tokens by a mask."""
    mask = None
    if exclude is not None:
        mask = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
        mask = mask.scatter(1, exclude.long(), False)[:, None, None, :]
    query = query if query.ndim == 4 else query.expand(k.shape[0], -1, -1, -1)
    heads_first = (t.transpose(1, 2) for t in (query, k, v))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale).transpose(1, 2)


def min_bytes(query, k, v, scale, exclude) -> dict[str, int]:
    """Forward: keys and values in. Backward: keys and values in, their gradients out. Queries and
    outputs are small."""
    tokens = tensor_bytes(k, v)
    return {"forward": tokens, "backward": 2 * tokens}


BENCH = OpBench(
    op="single_query_attention",
    fused=single_query_attention,
    eager=single_query_attention_out,
    cases=(
        attention_case("PartialFormer-B3 stage 1", "single", 32, 3136, 1, 4, 16, 49, quick=True),
        attention_case("PartialFormer-B3 stage 2", "single", 32, 784, 1, 8, 16, 49),
        attention_case("PartialFormer-B3 stage 3", "single", 32, 196, 1, 16, 16, 49),
        attention_case("MCGA stage 1", "group", 32, 3136, 8, 2, 16, quick=True),
        attention_case("MCGA stage 2", "group", 32, 784, 8, 2, 32),
        attention_case("MCGA stage 3", "group", 32, 196, 8, 4, 32),
        attention_case("pooling, 512x512", "pooling", 1, 512 * 512, 1, 4, 16),
    ),
    min_bytes=min_bytes,
    baselines={"sdpa": sdpa_formulation},
    goals=TIER_1,
    limited_by=(
        "reading keys and values once, as the baselines do, where there is one query; with eight, "
        "products and sums over lanes"
    ),
)

if __name__ == "__main__":
    run(BENCH)
