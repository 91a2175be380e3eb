"""multiscale_attention: MSCSA's grids, MRL's regions, CvT's strided keys, EMSNet's small heads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.goals import TIER_1
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import multiscale_attention
from hybrid_kernels.samples import Maker
from python_ref.ops import multiscale_attention_out


def attention_case(
    name: str,
    group: str,
    batch: int,
    queries: int,
    keys: tuple[int, ...],
    heads: int,
    d: int,
    dv: int | None = None,
    **options: bool,
) -> Case:
    """A case on `batch` images, more on a GPU."""

    def build(make: Maker) -> tuple:
        images = sized_for(make.device, batch)[0]
        q = make.data(images, queries, heads, d)
        ks = [make.data(images, m, heads, d) for m in keys]
        vs = [make.data(images, m, heads, dv or d) for m in keys]
        return q, ks, vs, d**-0.5

    return Case(name, group, build, **options)


def sdpa_formulation(q: Tensor, ks: list[Tensor], vs: list[Tensor], scale: float) -> Tensor:
    """`scaled_dot_product_attention` over joined segments.

    Queries and keys are padded with zeros to the width of the values where that is larger: on
    CPUs only equal widths are served by the fused kernel.
    """
    key, value = (t[0] if len(t) == 1 else torch.cat(t, dim=1) for t in (ks, vs))
    missing = value.shape[-1] - q.shape[-1]
    if missing > 0:
        q, key = F.pad(q, (0, missing)), F.pad(key, (0, missing))
    heads_first = (t.transpose(1, 2) for t in (q, key, value))
    return F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)


def min_bytes(q, ks, vs, scale) -> dict[str, int]:
    """Forward: queries, keys and values in; output and log-sum-exp out. Backward: those and the
    output's gradient in, the gradients of queries, keys and values out."""
    inputs = tensor_bytes(q, *ks, *vs)
    out_bytes = tensor_bytes(q) // q.shape[-1] * vs[0].shape[-1]
    lse_bytes = q[..., 0].numel() * 4
    return {
        "forward": inputs + out_bytes + lse_bytes,
        "backward": 2 * inputs + 2 * out_bytes + lse_bytes,
    }


SHORT = (
    attention_case("MSCSA 7x7", "short", 128, 49, (49, 16, 9), 8, 24, 48, quick=True),
    attention_case("MRL stage 1, 224", "short", 64, 49, (49,), 3, 64),
    attention_case("MRL stage 2, 224", "short", 64, 50, (50,), 6, 64, quick=True),
    attention_case("MRL stage 1, 384", "short", 16, 144, (144,), 3, 64),
    attention_case("MRL stage 2, 384", "short", 16, 145, (145,), 6, 64),
    attention_case("EMSNet stage 1", "short", 64, 100, (100,), 1, 8),
)
LONG = (
    attention_case("MSCSA 25x40", "long", 2, 1000, (1000, 260, 126), 8, 35, 70, quick=True),
    attention_case("MRL stage 0, 384", "long", 16, 576, (576,), 1, 64),
    attention_case("CvT stage 0", "long", 4, 3136, (784,), 1, 64),
    attention_case("CvT stage 1", "long", 8, 784, (196,), 3, 64),
)

BENCH = OpBench(
    op="multiscale_attention",
    fused=multiscale_attention,
    eager=multiscale_attention_out,
    cases=(*SHORT, *LONG),
    min_bytes=min_bytes,
    baselines={"sdpa": sdpa_formulation},
    goals=TIER_1,
    limited_by=(
        "products near the rate of the vector units, which the library's products reach, too"
    ),
)

if __name__ == "__main__":
    run(BENCH)
