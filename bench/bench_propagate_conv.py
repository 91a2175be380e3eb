"""propagate_conv: where EMSNet's branches gather their scales, with products and gate."""

import torch.nn.functional as F
from torch import Tensor

from bench.bench_propagate_cat import BRANCHES, STAGES, make_parts
from bench.bench_propagate_cat import broadcast as joined_by_broadcast
from bench.main import run
from bench.op_bench import Case, OpBench, tensor_bytes
from hybrid_kernels.nn import propagate_conv
from hybrid_kernels.samples import Maker
from python_ref.ops import propagate_conv as reference


def gather_case(stage: str, branch: str) -> Case:
    """Of the static branch with its gate, or of the dynamic one."""

    def build(make: Maker) -> tuple:
        maps, kernels, H, W = make_parts(make, stage, branch)
        kernels = [None if kernel is None else kernel.to(make.dtype) for kernel in kernels]
        C = STAGES[stage][3]
        weight = make.data(C, len(maps) * C // 2) / C**0.5
        if branch == "dynamic":
            return maps, kernels, weight, H, W, None, None
        gate_x = make.data(maps[0].shape[0], H, W, C)
        return maps, kernels, weight, H, W, gate_x, make.data(C, C) / C**0.5

    return Case(f"{stage}, {branch}", branch, build, quick=stage.startswith("stage 1"))


def broadcast(maps, kernels, weight, height, width, gate_x, gate_weight) -> Tensor:
    """Tokens spread by a broadcast product instead of a transposed convolution."""
    y = F.linear(joined_by_broadcast(maps, kernels, height, width), weight)
    return y if gate_x is None else F.linear(gate_x, gate_weight) * y.sigmoid()


def min_bytes(maps, kernels, weight, height, width, gate_x, gate_weight) -> dict[str, int]:
    """Nothing joined in memory. Forward: maps and the gate's input in, y out. Backward: those and
    the gradient of y in, theirs out."""
    given = sum(tensor_bytes(t) for t in (*maps, gate_x) if t is not None)
    y = maps[0].shape[0] * height * width * weight.shape[0] * weight.element_size()
    return {"forward": given + y, "backward": 2 * given + y}


BENCH = OpBench(
    op="propagate_conv",
    fused=propagate_conv,
    eager=reference,
    baselines={"broadcast": broadcast},
    cases=tuple(gather_case(stage, branch) for branch in BRANCHES for stage in STAGES),
    min_bytes=min_bytes,
    limited_by="the library's products and gate, and the joined map, which is stored",
)

if __name__ == "__main__":
    run(BENCH)
