"""pytest-benchmark entry points: the quick cases of every op, for regression tracking.

    python -m pytest bench --benchmark-compare

Times that count, with baselines and roofline, come from bench_<op>.py.
"""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.main import default_device
from bench.op_bench import DTYPES, Case, OpBench, differentiable
from bench.timing import Call
from hybrid_kernels.samples import Maker

OPS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
BENCHES = [importlib.import_module(f"bench.bench_{op}").BENCH for op in OPS if op != "models"]
CASES = [
    pytest.param(bench, case, id=f"{bench.op}-{case.name}")
    for bench in BENCHES
    for case in bench.cases
    if case.quick
]


@pytest.fixture(params=["float32", "bfloat16"])
def call(request: pytest.FixtureRequest, bench: OpBench, case: Case) -> Call:
    args = case.build(Maker(DTYPES[request.param], default_device()))
    args = pytree.tree_map_only(Tensor, differentiable, args)
    return Call(bench.op, bench.fused, args, pytree.tree_map(torch.ones_like, bench.fused(*args)))


def synchronised(function):
    """The function, waiting for a GPU where there is one."""

    def run():
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


@pytest.mark.parametrize(("bench", "case"), CASES)
def test_forward(benchmark, call):
    benchmark(synchronised(call.infer))


@pytest.mark.parametrize(("bench", "case"), CASES)
def test_forward_and_backward(benchmark, call):
    benchmark(synchronised(call.train))
