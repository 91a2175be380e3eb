"""abstract_token_attention: MAT's stages at 224, and the ragged map of a 1280 x 800 photograph."""

from torch import Tensor

from bench.attention_baselines import sdpa_with_token
from bench.goals import TIER_1
from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import abstract_token_attention
from hybrid_kernels.samples import Maker
from python_ref.ops import abstract_token_attention_out

WINDOW = 7


def attention_case(
    name: str, group: str, size: tuple[int, int, int], heads: int, d: int, **options: bool
) -> Case:
    """A case on maps of `size` (batch, rows, columns), the batch larger on a GPU."""

    def build(make: Maker) -> tuple:
        qkv = make.data(*sized_for(make.device, *size), 3, heads, d)
        return qkv, make.parameter(3, heads, d), WINDOW, d**-0.5, None

    return Case(name, group, build, **options)


def fused(*arguments) -> Tensor:
    """The map alone: every contestant computes the summaries too, and gives the map."""
    return abstract_token_attention(*arguments)[0]


def eager(*arguments) -> Tensor:
    return abstract_token_attention_out(*arguments)[0]


def min_bytes(qkv, token, window, scale, pad_kv) -> dict[str, int]:
    """Forward: qkv in; map, summaries and log-sum-exp out. Backward: those and the gradients of map
    and summaries in, the gradient of qkv out. Parameters are small."""
    B, H, W, _, h, d = qkv.shape
    windows = B * -(-H // window) * -(-W // window)
    outputs = tensor_bytes(qkv) // 3 + windows * h * d * qkv.element_size()
    lse_bytes = windows * h * (1 + window**2) * 4
    return {
        "forward": tensor_bytes(qkv) + outputs + lse_bytes,
        "backward": 2 * tensor_bytes(qkv) + 2 * outputs + lse_bytes,
    }


STAGES = (
    attention_case("MAT-5 stage 3, 224", "224", (32, 14, 14), 16, 16, quick=True),
    attention_case("MAT-5 stage 4, 224", "224", (32, 7, 7), 32, 16, quick=True),
    attention_case("MAT-3 stage 3, 224", "224", (32, 14, 14), 8, 18),
    attention_case("MAT-1 stage 3, 224", "224", (32, 14, 14), 12, 8),
)
RAGGED = (attention_case("MAT-5 stage 3, 1280x800", "ragged", (1, 50, 80), 16, 16),)

BENCH = OpBench(
    op="abstract_token_attention",
    fused=fused,
    eager=eager,
    cases=(*STAGES, *RAGGED),
    min_bytes=min_bytes,
    baselines={"sdpa": sdpa_with_token},
    goals=TIER_1,
    limited_by=(
        "gathering rows, and 50 queries and keys in 64 lanes; in bfloat16 the conversions "
        "around products as short as these"
    ),
)

if __name__ == "__main__":
    run(BENCH)
