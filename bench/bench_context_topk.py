"""context_topk: PartialFormer's choice of the foreground tokens."""

import torch
from torch import Tensor

from bench.main import run
from bench.op_bench import Case, OpBench, sized_for, tensor_bytes
from hybrid_kernels import context_topk
from hybrid_kernels.samples import Maker
from python_ref.ops import context_topk as reference


def choice_case(
    name: str, group: str, batch: int, tokens: int, channels: int, n: int, **options
) -> Case:
    """A case on `batch` images, more on a GPU."""

    def build(make: Maker) -> tuple:
        return make.data(*sized_for(make.device, batch, tokens, channels)), n

    return Case(name, group, build, **options)


def topk_formulation(u: Tensor, n: int) -> Tensor:
    """`torch.topk`, which does not say which of equal means it takes."""
    means = u.detach().mean(dim=-1, dtype=torch.float32)
    return means.topk(n, sorted=False).indices.sort().values.int()


def min_bytes(u, n) -> dict[str, int]:
    """The tokens in; there is no backward."""
    return {"forward": tensor_bytes(u), "backward": 0}


BENCH = OpBench(
    op="context_topk",
    fused=context_topk,
    eager=reference,
    cases=(
        choice_case("B3 stage 1, 224", "224", 32, 3136, 64, 49, quick=True),
        choice_case("B3 stage 2, 224", "224", 32, 784, 128, 49),
        choice_case("B3 stage 3, 224", "224", 32, 196, 256, 49, quick=True),
        choice_case("B3 stage 1, 1280x800", "dense", 1, 64000, 64, 1000),
        choice_case("B3 stage 3, 1280x800", "dense", 1, 4000, 256, 1000),
    ),
    min_bytes=min_bytes,
    baselines={"topk": topk_formulation},
    limited_by="reading the map once, which the best baseline does as fast",
)

if __name__ == "__main__":
    run(BENCH)
