"""The one harness: an op's declaration in, every property that the house promises out.

    class TestAtrousAttention(OpSuite):
        declaration = atrous_attention.DECLARATION

Environment: HYBRID_TEST_DEVICE (cpu, cuda), HYBRID_KERNELS_BACKEND (triton, ...),
HYBRID_KERNELS_LIBRARY (the emulated CUDA build), HYBRID_TEST_COST (small, medium, large, huge: the
costliest samples, where the default is not to the purpose). The suite is the same for all of them;
what a backend cannot do by design is skipped with its reason.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils import _pytree as pytree

import hybrid_kernels
from hybrid_kernels import _native
from hybrid_kernels.checking import Run, check_sample, convert, floating, fused, run
from hybrid_kernels.samples import Cost, Declaration, Maker, Sample

DEVICE = os.environ.get("HYBRID_TEST_DEVICE", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EMULATOR = _native.build_info()["emulator"]
INTERPRETED = hybrid_kernels.get_backend() == "triton" and DEVICE == "cpu"
SLOW = bool(EMULATOR) or INTERPRETED


def backend() -> str:
    """The backend under test, by the name that a user would ask for."""
    if EMULATOR:
        return "cuda"
    chosen = hybrid_kernels.get_backend()
    return DEVICE if chosen == "auto" else chosen


def dtypes() -> Sequence[torch.dtype]:
    return DTYPES if backend() in ("cpu", "reference") else DTYPES[:3]


def arguments(sample: Sample, dtype: torch.dtype) -> tuple[Any, ...]:
    return sample.build(Maker(dtype, DEVICE))


def highest_cost() -> Cost:
    """Of the samples that can be afforded here."""
    if wish := os.environ.get("HYBRID_TEST_COST"):
        return Cost[wish.upper()]
    if INTERPRETED or EMULATOR in ("asan", "tsan"):
        return Cost.MEDIUM
    return Cost.LARGE if EMULATOR else Cost.HUGE


def assert_same_bits(first: Run, second: Run, label: str) -> None:
    for (name, a), (_, b) in zip(first.tensors(), second.tensors(), strict=True):
        assert torch.equal(a, b), f"{label}: {name} differs"


def assert_accurate(declaration: Declaration, sample: Sample, dtype: torch.dtype) -> None:
    with poisoned_empty_tensors():
        verdicts = check_sample(declaration, sample, dtype, DEVICE)
    for v in verdicts:
        assert v.ok, f"{v.name}: error {v.error:.3e}, allowed {v.allowed:.3e}"


# ---- memory ------------------------------------------------------------------------------------


@contextmanager
def poisoned_empty_tensors() -> Iterator[None]:
    """torch.empty gives NaN: an output that a kernel forgets to write is seen.

    Torch fills empty tensors under deterministic algorithms, which the ops must work under anyway.
    """
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def guarded(t: Tensor, pad: int = 512) -> Tensor:
    """The same view of a copy whose storage lies between NaNs: a stray load shows in the result."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    if t.numel() == 0:
        return t
    store = torch.full((span + 2 * pad,), float("nan"), dtype=t.dtype, device=t.device)
    view = store.as_strided(t.shape, t.stride(), pad)
    # An expanded tensor has overlapping elements: write each memory place once.
    dense = [slice(0, 1) if s == 0 else slice(None) for s in t.stride()]
    view[tuple(dense)] = t[tuple(dense)]
    return view


def spread(t: Tensor) -> Tensor:
    """The same values, the last image beyond 2^31 elements; untouched pages cost nothing."""
    if t.dim() == 0 or t.shape[0] < 2:
        return t
    stride = 2**31 // (t.shape[0] - 1) + 64
    span = (t.shape[0] - 1) * stride + t[0].numel()
    dense = torch.empty_strided(t.shape[1:], torch.empty(t.shape[1:]).stride()).stride()
    view = torch.empty(span, dtype=t.dtype, device=t.device).as_strided(t.shape, (stride, *dense))
    return view.copy_(t)


# ---- the suite ---------------------------------------------------------------------------------


def pytest_parameters(suite: type, metafunc: pytest.Metafunc) -> None:
    """Fill in ``sample``, ``small_sample``, ``dtype``, ``isa`` and ``bad_call`` (see conftest)."""
    declaration = suite.declaration
    affordable = [sample for sample in declaration.samples if sample.cost <= highest_cost()]
    isas = _native.build_info()["cpu_isas"] if backend() == "cpu" else [None]
    values: dict[str, Sequence[Any]] = {
        "sample": affordable,
        "small_sample": [sample for sample in affordable if sample.cost == Cost.SMALL],
        "dtype": dtypes(),
        "isa": isas,
        "bad_call": declaration.bad_calls,
    }
    for name, choices in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices, ids=[_label(choice) for choice in choices])


def _label(value: Any) -> str:
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


class OpSuite:
    """Subclass it with a ``declaration``; every property below is then tested for the op."""

    declaration: Declaration

    def test_values_and_gradients_are_as_exact_as_the_reference(self, sample, dtype, isa):
        with instruction_set(isa):
            assert_accurate(self.declaration, sample, dtype)

    def test_gradients_agree_with_finite_differences(self, small_sample):
        self._skip_without_derivative()
        if torch.float64 not in dtypes():
            pytest.skip(f"backend {backend()} has no float64")
        args = arguments(small_sample, torch.float64)
        for i in floating(args):
            leaves, tree = pytree.tree_flatten(args)
            if leaves[i].numel() == 0:
                continue
            leaf = leaves[i].detach().clone().requires_grad_()

            def call(value, leaves=leaves, i=i, tree=tree):
                changed = [*leaves[:i], value, *leaves[i + 1 :]]
                out = fused(self.declaration)(*pytree.tree_unflatten(changed, tree))
                outs = [out] if isinstance(out, Tensor) else out
                return tuple(o for o in outs if o.requires_grad)

            assert torch.autograd.gradcheck(call, leaf, fast_mode=True, nondet_tol=0.0)

    def test_every_subset_of_gradients_is_the_part_of_all(self, small_sample):
        self._skip_without_derivative()
        args = arguments(small_sample, torch.float32)
        places = floating(args)
        full = run(fused(self.declaration), args, places)
        sizes = range(1, len(places))
        if SLOW:  # those that keep one or leave one out
            sizes = sorted({1, len(places) - 1} & set(sizes))
        for size in sizes:
            for subset in itertools.combinations(places, size):
                part = run(fused(self.declaration), args, subset)
                for i in subset:
                    assert torch.equal(part.gradients[i], full.gradients[i]), (subset, i)

    def test_opcheck(self, small_sample):
        args = arguments(small_sample, torch.float32)
        wanted = set(floating(args))
        leaves, tree = pytree.tree_flatten(args)
        leaves = [a.detach().requires_grad_() if i in wanted else a for i, a in enumerate(leaves)]
        torch.library.opcheck(fused(self.declaration), pytree.tree_unflatten(leaves, tree))

    def test_compiled_graph_is_whole_and_serves_a_second_size(self):
        counts = []
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        torch._dynamo.reset()
        compiled = torch.compile(
            self._tensors_only(), fullgraph=True, dynamic=True, backend=counter
        )
        for name in self.declaration.two_sizes:
            args = arguments(self.declaration.by_name[name], torch.float32)
            places = floating(args)
            eager = run(fused(self.declaration), args, places)
            assert_same_bits(eager, run(compiled, args, places), name)
            counts.append(counter.frame_count)
        assert counts[0] == counts[1] > 0, "compiled again for the second size"

    def test_inductor_agrees_with_eager(self, small_sample):
        if small_sample is not self._first_small():
            pytest.skip("one sample is enough: the op is opaque to Inductor")
        torch._dynamo.reset()
        args = arguments(small_sample, torch.float32)
        compiled = torch.compile(self._tensors_only(), fullgraph=True)
        places = floating(args)
        assert_same_bits(
            run(fused(self.declaration), args, places), run(compiled, args, places), "inductor"
        )

    def test_autocast_lowers_what_is_declared_and_nothing_else(self, small_sample):
        args = arguments(small_sample, torch.float32)
        names = [a.name for a in fused(self.declaration)._schema.arguments]
        lowered = [
            convert(value, lambda t: t.bfloat16()) if name in self.declaration.autocast else value
            for name, value in zip(names, args, strict=False)
        ]
        with torch.autocast(DEVICE, torch.bfloat16):
            got = run(fused(self.declaration), args)
        assert_same_bits(run(fused(self.declaration), lowered), got, "autocast")

    def test_export(self, small_sample):
        args = arguments(small_sample, torch.float32)
        tensors = [a for a in pytree.tree_leaves(args) if isinstance(a, Tensor)]
        program = torch.export.export(_Rebuilt(fused(self.declaration), args), tuple(tensors))
        again = program.module()(*tensors)
        outputs = [again] if isinstance(again, Tensor) else list(again)
        assert_same_bits(run(fused(self.declaration), args), Run(outputs), "exported")

    def test_meta_tensors_give_the_shapes_and_dtypes_of_real_ones(self, sample, dtype):
        real = run(fused(self.declaration), arguments(sample, dtype)).outputs
        meta = run(fused(self.declaration), sample.build(Maker(dtype, "meta"))).outputs
        assert [(o.shape, o.dtype) for o in real] == [(o.shape, o.dtype) for o in meta]

    def test_ten_runs_give_the_same_bits(self, sample, dtype):
        args = arguments(sample, dtype)
        first = run(fused(self.declaration), args, floating(args))
        for _ in range(1 if SLOW else 9):
            again = run(fused(self.declaration), args, floating(args))
            assert_same_bits(first, again, sample.name)

    def test_the_number_of_threads_does_not_change_a_bit(self, sample):
        if backend() != "cpu":
            pytest.skip("threads belong to the cpu backend")
        args = arguments(sample, torch.float32)
        before = torch.get_num_threads()
        try:
            runs = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                runs.append(run(fused(self.declaration), args, floating(args)))
        finally:
            torch.set_num_threads(before)
        for other in runs[1:]:
            assert_same_bits(runs[0], other, sample.name)

    def test_nothing_outside_the_arguments_is_read(self, sample, dtype):
        args = arguments(sample, dtype)
        plain = run(fused(self.declaration), args, floating(args))
        fenced = run(fused(self.declaration), convert(args, guarded), floating(args))
        for name, tensor in fenced.tensors():
            assert tensor.isfinite().all(), f"{sample.name}: {name} holds a guard's NaN"
        assert_same_bits(plain, fenced, sample.name)

    def test_offsets_beyond_two_to_the_31(self, dtype):
        if dtype == torch.float64:
            pytest.skip("float32 shares the index maths at half the address space")
        name = self.declaration.two_sizes[0]
        args = arguments(self.declaration.by_name[name], dtype)
        leaves, tree = pytree.tree_flatten(args)
        first = floating(args)[0]
        leaves[first] = spread(leaves[first])
        far = pytree.tree_unflatten(leaves, tree)
        assert_same_bits(
            run(fused(self.declaration), args), run(fused(self.declaration), far), "far"
        )

    def test_bad_arguments_are_refused_by_name(self, bad_call):
        with pytest.raises((ValueError, RuntimeError), match=bad_call.message):
            fused(self.declaration)(*bad_call.build(Maker(torch.float32, DEVICE)))
        with pytest.raises((ValueError, RuntimeError), match=bad_call.message):
            fused(self.declaration)(*bad_call.build(Maker(torch.float32, "meta")))

    def test_second_derivative(self, small_sample):
        self._skip_without_derivative()
        args = arguments(small_sample, torch.float32)
        leaves, tree = pytree.tree_flatten(args)
        place = floating(args)[0]
        if leaves[place].numel() == 0:
            pytest.skip("nothing to differentiate in an empty sample")
        leaves[place] = leaves[place].detach().requires_grad_()
        out = pytree.tree_leaves(fused(self.declaration)(*pytree.tree_unflatten(leaves, tree)))[0]
        (grad,) = torch.autograd.grad((out * out).sum(), leaves[place], create_graph=True)
        if self.declaration.has_second_derivative:
            torch.autograd.grad(grad.sum(), leaves[place])
            return
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(grad.sum(), leaves[place])

    def _skip_without_derivative(self) -> None:
        if self.declaration.differentiable == 0:
            pytest.skip("the op has no derivative")

    def _first_small(self) -> Sample:
        return next(s for s in self.declaration.samples if s.cost == Cost.SMALL)

    def _tensors_only(self) -> Callable:
        op = fused(self.declaration)
        return lambda *args: op(*args)


class _Rebuilt(torch.nn.Module):
    """The op as a module of its tensors alone; everything else is a constant."""

    def __init__(self, op: Callable, args: Any):
        super().__init__()
        self.op = op
        self.leaves, self.tree = pytree.tree_flatten(args)

    def forward(self, *tensors: Tensor):
        given = iter(tensors)
        leaves = [next(given) if isinstance(a, Tensor) else a for a in self.leaves]
        return self.op(*pytree.tree_unflatten(leaves, self.tree))


@contextmanager
def instruction_set(name: str | None) -> Iterator[None]:
    """Run the CPU kernels of a lower instruction set; skip what this processor does not have."""
    if name is None:  # a backend without instruction sets
        yield
        return
    before = _native.cpu_isa()
    try:
        _native.set_cpu_isa(name)
    except ValueError as reason:
        pytest.skip(str(reason))
    try:
        yield
    finally:
        _native.set_cpu_isa(before)
