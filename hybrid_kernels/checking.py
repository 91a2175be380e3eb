"""The accuracy rule: run an op, run its reference in the same dtype and in float64, compare.

Tests and ``hybrid-kernels check`` prove kernels with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import python_ref.ops

from .samples import Declaration, Maker, Sample


@dataclass
class Run:
    """Outputs and gradients of one call; gradients by position among the flattened arguments."""

    outputs: list[Tensor]
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that the call gave, each with a name."""
        yield from ((f"output {i}", t) for i, t in enumerate(self.outputs))
        yield from ((f"gradient {i}", t) for i, t in self.gradients.items())


@dataclass(frozen=True)
class Verdict:
    """One output or gradient against the accuracy rule."""

    name: str
    error: float  # largest absolute difference from float64; nan if a value is not finite
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


def fused(declaration: Declaration) -> Callable:
    """``torch.ops.hybrid.<op>``: whatever backend serves it."""
    return getattr(torch.ops.hybrid, declaration.op).default


def reference(declaration: Declaration) -> Callable:
    """The op in plain PyTorch."""
    return getattr(python_ref.ops, declaration.op)


def floating(args: Any) -> list[int]:
    """Positions of the floating point tensors among the flattened arguments."""
    leaves = pytree.tree_leaves(args)
    return [i for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.is_floating_point()]


def convert(args: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The arguments with every floating tensor changed, lists and scalars kept."""
    return pytree.tree_map(
        lambda a: change(a) if isinstance(a, Tensor) and a.is_floating_point() else a, args
    )


def run(op: Callable, args: Any, wanted: Sequence[int] = (), seed: int = 1) -> Run:
    """Call ``op``; with ``wanted`` leaves requiring grad, also the gradients of a random loss.

    Outputs without a derivative, such as indices, give no gradients.
    """
    leaves, tree = pytree.tree_flatten(args)
    for i in wanted:
        leaves[i] = leaves[i].detach().requires_grad_()
    result = op(*pytree.tree_unflatten(leaves, tree))
    outputs = [result] if isinstance(result, Tensor) else list(result)
    if not wanted:
        return Run(outputs)
    roots = [out for out in outputs if out.requires_grad]
    if not roots:
        return Run(outputs)
    grads = [_gradient_like(out, seed + i) for i, out in enumerate(roots)]
    given = torch.autograd.grad(roots, [leaves[i] for i in wanted], grads)
    return Run([o.detach() for o in outputs], dict(zip(wanted, given, strict=True)))


def _gradient_like(out: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Rounded to bfloat16, so that every dtype is given the very same gradient.
    values = torch.randn(out.shape, generator=generator).bfloat16()
    return values.to(out.device, out.dtype)


def run_reference(
    declaration: Declaration, args: Any, dtype: torch.dtype, wanted: Sequence[int] = ()
) -> Run:
    """The reference on the same values; parameters never get narrower than float32."""
    leaves = pytree.tree_leaves(args)
    data = min((leaves[i].dtype for i in floating(args)), key=lambda d: torch.finfo(d).bits)
    parameters = torch.promote_types(dtype, torch.float32)
    cast = convert(args, lambda a: a.to(dtype if a.dtype == data else parameters))
    return run(_statistics_cut(reference(declaration), declaration.differentiable), cast, wanted)


def _statistics_cut(op: Callable, differentiable: int) -> Callable:
    """The reference's statistics carry a gradient that the fused op's do not: cut it."""

    def call(*args):
        result = op(*args)
        if isinstance(result, Tensor):
            return result
        return *result[:differentiable], *(extra.detach() for extra in result[differentiable:])

    return call


# The tiny absolute term of the rule, in units in the last place of the data's dtype: the reference
# may be exact by luck, and in float64 the truth is rounded as the value is.
ULPS = {torch.float64: 256, torch.float32: 8, torch.bfloat16: 1, torch.float16: 1}


def compare(got: Run, same_dtype: Run, exact: Run) -> list[Verdict]:
    """Max error against float64 <= 2x that of the reference in the same dtype + a tiny term.

    The tiny term is ``ULPS`` of the tensor's largest value, and at least 8 float32 ulps of the
    largest value of all tensors of the call (where the truth is zero by cancellation).
    """
    dtype = got.outputs[0].dtype
    largest = max((t.abs().max().item() for _, t in exact.tensors() if t.numel()), default=0.0)
    sums = torch.promote_types(dtype, torch.float32)
    floor = ULPS[sums] * torch.finfo(sums).eps * largest
    verdicts = []
    for (name, value), (_, plain), (_, truth) in zip(
        got.tensors(), same_dtype.tensors(), exact.tensors(), strict=True
    ):
        if value.shape != truth.shape:
            verdicts.append(Verdict(f"{name} of shape {tuple(value.shape)}", float("nan"), 0.0))
        elif not value.is_floating_point():  # a choice is right or wrong
            verdicts.append(Verdict(name, (value != truth).sum().item(), 0.0))
        elif truth.numel():
            # A nan in the difference makes a nan of the maximum, which no bound admits.
            error = (value.double() - truth).abs().max().item()
            ulp = torch.finfo(dtype).eps * truth.abs().max().item()
            allowed = 2 * (plain.double() - truth).abs().max().item()
            verdicts.append(Verdict(name, error, allowed + max(ULPS[dtype] * ulp, floor)))
    return verdicts


def check_sample(
    declaration: Declaration, sample: Sample, dtype: torch.dtype, device: str = "cpu"
) -> list[Verdict]:
    """Outputs and every gradient of one sample, by the accuracy rule."""
    args = sample.build(Maker(dtype, device))
    wanted = floating(args)
    got = run(fused(declaration), args, wanted)
    exact = run_reference(declaration, args, torch.float64, wanted)
    plain = run_reference(declaration, args, dtype, wanted)
    if not _is_finite(plain):
        # oneDNN's gradient of a bfloat16 convolution of one pixel can hold what memory held.
        with torch.backends.mkldnn.flags(enabled=False):
            plain = run_reference(declaration, args, dtype, wanted)
    return compare(got, plain, exact)


def _is_finite(run: Run) -> bool:
    return all(t.isfinite().all() for _, t in run.tensors())
