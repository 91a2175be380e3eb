"""What a benchmark of an op declares, and how it is run: see bench_atrous_partition.py for one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from bench.goals import TIER_2, Goal
from bench.roofline import Limits, Work, limit_contestants, limits_from
from bench.timing import (
    BACKWARD,
    BOTH,
    FORWARD,
    PHASES,
    Call,
    Contestant,
    Graphed,
    Output,
    interleave,
    is_differentiable,
    median_faults,
    median_ms,
    quartiles_ms,
)
from hybrid_kernels.measure import Sample, clock_for
from hybrid_kernels.samples import Maker

FUSED, EAGER, COMPILE = "fused", "eager", "compile"
ONE_IMAGE = "fused, one image"  # no rival: ours again, on data that the caches hold
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CUDA_BATCHES = 8
# Largest difference from the float32 reference, relative to its largest value: enough to tell a
# wrong formulation from a rounded one. Where eager itself is further off, as sums over many pixels
# in bfloat16 are, twice its difference: the accuracy rule, by which the tests prove kernels. What
# cancels to zero in exact arithmetic is rounding: no tensor is held smaller than CANCELLED of all.
CANCELLED = 1e-2
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Case:
    """Inputs to measure on.

    Args:
        name: Unique among the cases of an op.
        group: Cases of a group share a geometric mean.
        build: Arguments of the functions, from a `Maker`.
        with_compile: Whether torch.compile is among the baselines: it takes 10 s per dtype.
        quick: Part of a quick run.
    """

    name: str
    group: str
    build: Callable[[Maker], tuple]
    with_compile: bool = True
    quick: bool = False


@dataclass(frozen=True)
class OpBench:
    """An op, its baselines and its cases. All functions take a case's arguments and return one
    tensor or, for an op of several outputs, a sequence of them.

    Args:
        op: Name of the op, and of the files of results.
        fused: Ours.
        eager: The reference; torch.compile of it is added.
        cases: What to measure on.
        min_bytes: Least traffic, from the arguments: {"forward": bytes, "backward": bytes}.
        baselines: Further formulations by name, for any device.
        cuda_baselines: The same for GPUs only.
        goals: What the op should reach.
        limited_by: What keeps it from that, as measured: stands beside the results.
    """

    op: str
    fused: Callable[..., Output]
    eager: Callable[..., Output]
    cases: Sequence[Case]
    min_bytes: Callable[..., dict[str, int]]
    baselines: dict[str, Callable[..., Output]] = field(default_factory=dict)
    cuda_baselines: dict[str, Callable[..., Output]] = field(default_factory=dict)
    goals: Sequence[Goal] = TIER_2
    limited_by: str = ""


@dataclass(frozen=True)
class Options:
    """How to run: set on the command line, see `bench.main`."""

    device: str = "cpu"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    quick: bool = False
    compile: bool = True
    graphs: bool = False  # also launched from CUDA graphs
    budget_s: float = 4.0  # of timed rounds, per case and dtype
    only: str = ""  # cases whose name contains this

    @property
    def rounds(self) -> tuple[int, int]:
        return (3, 5) if self.quick else (5, 40)


class OneImageMaker(Maker):
    """Makes data whose images are all the first one: reading them again costs no memory traffic."""

    def data(self, *shape: int) -> Tensor:
        return super().data(1, *shape[1:]).expand(shape)


@dataclass(frozen=True)
class Row:
    """One line of results: a case, dtype, phase and way of launching, all contestants."""

    op: str
    case: str
    group: str
    dtype: str
    phase: str
    launch: str  # "eager" or "graph"
    inputs: str  # shapes of the tensors
    rounds: int
    ms: dict[str, float]  # medians by contestant
    fused_quartiles_ms: tuple[float, float]
    best_baseline: str
    speedup: float  # over the best baseline
    roofline_ms: float
    bound: str  # "memory" or "compute"
    percent_of_roofline: float
    percent_of_copy: float  # of the bandwidth of a plain copy, counting the least bytes
    reading_percent: float | None  # of ours, that reading from memory costs; None: a single image
    peak_mb: dict[str, float]
    page_faults: dict[str, int]
    min_bytes: int
    flops: int
    copy_gb_per_s: float
    gemm_gflop_per_s: float


def select_cases(bench: OpBench, options: Options) -> list[Case]:
    return [
        case
        for case in bench.cases
        if options.only in case.name and (case.quick or not options.quick)
    ]


def measure_case(bench: OpBench, case: Case, dtype: str, options: Options) -> list[Row]:
    """Rows of one case in one dtype, every phase.

    Raises:
        RuntimeError: A baseline or the op disagrees with the reference.
    """
    torch._dynamo.reset()
    clock = clock_for(options.device)
    functions = _functions(bench, case, options)
    args = make_inputs(case, DTYPES[dtype], options.device)
    calls = _agreeing_calls(functions, args, case, options.device)
    limits = limit_contestants(options.device, DTYPES[dtype])
    work = count_work(bench, args)
    repeated = _call_on_one_image(bench, case, calls[0].grad_out)
    peaks = {call.name: call.peaks(clock) for call in calls}
    launches: dict[str, list[Contestant]] = {"eager": [*calls, *repeated]}
    if options.graphs:
        launches["graph"] = [Graphed(call) for call in calls]
    rows = []
    for launch, contestants in launches.items():
        everyone = [*limits, *contestants]
        samples = interleave(everyone, clock, options.budget_s, options.rounds)
        measured = limits_from(limits, samples)
        head = dict(op=bench.op, case=case.name, group=case.group, dtype=dtype, launch=launch)
        head["inputs"] = ", ".join("x".join(map(str, x.shape)) for x in _leaves(args))
        timed = {call.name: samples[call.name] for call in contestants}
        rows += list(_rows(head, timed, peaks, work, measured))
    return rows


def make_inputs(case: Case, dtype: torch.dtype, device: str, maker: type[Maker] = Maker) -> tuple:
    """Arguments of a case; every tensor among them is a leaf that wants its gradient."""
    args = case.build(maker(dtype, device))
    return pytree.tree_map_only(Tensor, differentiable, args)


def count_work(bench: OpBench, args: tuple) -> dict[str, Work]:
    """Least bytes, as the op declares, and FLOPs, as its formula counts, of every phase."""
    with FlopCounterMode(display=False) as counter:
        out = bench.fused(*args)
        forward = counter.get_total_flops()
        if is_differentiable(out):
            ones = pytree.tree_map(torch.ones_like, out)
            torch.autograd.grad(out, _wanted(args), ones)
        backward = counter.get_total_flops() - forward
    traffic = bench.min_bytes(*args)
    return {
        FORWARD: Work(traffic[FORWARD], forward),
        BACKWARD: Work(traffic[BACKWARD], backward),
        BOTH: Work(traffic[FORWARD] + traffic[BACKWARD], forward + backward),
    }


def tensor_bytes(*tensors: Tensor) -> int:
    """Sum of the sizes of tensors, for `OpBench.min_bytes`."""
    return sum(x.numel() * x.element_size() for x in tensors)


def sized_for(device: torch.device, batch: int, *rest: int) -> tuple[int, ...]:
    """A shape whose batch gives the device enough to do."""
    return (batch * CUDA_BATCHES if device.type == "cuda" else batch), *rest


def _functions(bench: OpBench, case: Case, options: Options) -> dict[str, Callable[..., Output]]:
    functions = {FUSED: bench.fused, EAGER: bench.eager}
    if options.compile and case.with_compile:
        functions[COMPILE] = torch.compile(bench.eager, dynamic=False, fullgraph=True)
    functions |= bench.baselines
    if options.device == "cuda":
        functions |= bench.cuda_baselines
    return functions


def differentiable(x: Tensor) -> Tensor:
    """A leaf on the same memory; indices stay without gradient."""
    return x.detach().requires_grad_(x.is_floating_point())


def _widened(x: Tensor) -> Tensor:
    return differentiable(x.float() if x.is_floating_point() else x)


def _leaves(args: tuple) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]


def _wanted(args: tuple) -> list[Tensor]:
    return [x for x in _leaves(args) if x.requires_grad]


def _agreeing_calls(
    functions: dict[str, Callable[..., Output]], args: tuple, case: Case, device: str
) -> list[Call]:
    """A contestant for each function, once its output and gradients are known to be right."""
    wide = pytree.tree_map_only(Tensor, _widened, args)
    truth_out = functions[EAGER](*wide)
    generator = torch.Generator(device).manual_seed(1)
    dtype = _leaves(args)[0].dtype
    grad = pytree.tree_map(
        lambda x: torch.randn(x.shape, generator=generator, device=device).to(dtype), truth_out
    )
    truth = _values(Call(EAGER, functions[EAGER], wide, pytree.tree_map(Tensor.float, grad)))
    calls = [Call(name, function, args, grad) for name, function in functions.items()]
    plain = next(_values(call) for call in calls if call.name == EAGER)
    cancelled = CANCELLED * max(expected.abs().max().item() for expected in truth)
    for call in calls:
        for value, expected, eager in zip(_values(call), truth, plain, strict=True):
            allowed = AGREEMENT[dtype] * max(expected.abs().max().item(), cancelled)
            limit = max(allowed, 2 * _difference(eager, expected))
            error = _difference(value, expected)
            if not error <= limit:
                raise RuntimeError(
                    f"{call.name} disagrees with the reference on {case.name} in {dtype}: largest "
                    f"difference {error:.3g}, allowed {limit:.3g}; nothing was measured"
                )
    return calls


def _values(call: Call) -> list[Tensor]:
    """Outputs and gradients."""
    return [*pytree.tree_leaves(call.infer()), *call.backward(call.forward())]


def _difference(value: Tensor, expected: Tensor) -> float:
    return (value.float() - expected).abs().max().item()


def _call_on_one_image(bench: OpBench, case: Case, grad: Output) -> list[Call]:
    """Ours on a batch of equal images, if the case has a batch."""
    like = pytree.tree_leaves(grad)[0]
    args = make_inputs(case, like.dtype, like.device.type, OneImageMaker)
    if not any(x.shape[0] > 1 and x.stride(0) == 0 for x in _leaves(args)):
        return []
    grad = pytree.tree_map(lambda g: g[:1].expand_as(g), grad)
    return [Call(ONE_IMAGE, bench.fused, args, grad)]


def _rows(
    head: dict[str, str],
    samples: dict[str, dict[str, list[Sample]]],
    peaks: dict[str, dict[str, int]],
    work: dict[str, Work],
    limits: Limits,
) -> Iterator[Row]:
    for phase in PHASES:
        timed = {name: phases[phase] for name, phases in samples.items() if phase in phases}
        if not timed:  # a CUDA graph holds no backward alone
            continue
        ms = {name: median_ms(values) for name, values in timed.items()}
        one_image = ms.pop(ONE_IMAGE, None)
        best = min((name for name in ms if name != FUSED), key=ms.__getitem__)
        roofline = limits.roofline_ms(work[phase])
        yield Row(
            **head,
            phase=phase,
            rounds=len(timed[FUSED]),
            ms=ms,
            fused_quartiles_ms=quartiles_ms(timed[FUSED]),
            best_baseline=best,
            speedup=ms[best] / ms[FUSED],
            roofline_ms=roofline,
            bound=limits.bound(work[phase]),
            percent_of_roofline=100 * roofline / ms[FUSED],
            percent_of_copy=100 * limits.memory_ms(work[phase]) / ms[FUSED],
            reading_percent=one_image and 100 * (1 - one_image / ms[FUSED]),
            peak_mb={name: peaks[name][phase] / 1e6 for name in ms},
            page_faults={name: median_faults(timed[name]) for name in ms},
            min_bytes=work[phase].bytes,
            flops=work[phase].flops,
            copy_gb_per_s=limits.bytes_per_s / 1e9,
            gemm_gflop_per_s=limits.flops_per_s / 1e9,
        )
