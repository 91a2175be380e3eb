"""What only a GPU can show, run by bench/gpu.sh.

python -m bench.gpu_checks kernels     every op on its small samples, for compute-sanitizer
python -m bench.gpu_checks graphs      CUDA graphs: replayed on new values, the eager bits
"""

import sys
from collections.abc import Callable, Iterator

import click
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import hybrid_kernels
from bench.op_bench import differentiable
from hybrid_kernels import checking
from hybrid_kernels.samples import Cost, Declaration, Maker, Sample, declarations

DTYPES = (torch.float32, torch.bfloat16)


@click.group()
def main() -> None:
    """Checks for a machine with a GPU."""


@main.command()
@click.option("--device", default="cuda", show_default=True)
def kernels(device: str) -> None:
    """Run every op, forward and backward, on its small samples; compare nothing.

    The inputs come from the host, so that a sanitizer sees few kernels but ours.
    """
    count = sum(1 for _ in run_small_samples(device))
    click.echo(f"{count} samples ran on {hybrid_kernels.get_backend()} kernels")


def run_small_samples(device: str) -> Iterator[Sample]:
    for declaration, sample, dtype in _small_samples():
        args = sample.build(Maker(dtype, device))
        checking.run(checking.fused(declaration), args, checking.floating(args))
        if device == "cuda":
            torch.cuda.synchronize()
        yield sample


@main.command()
def graphs() -> None:
    """Capture every op in a CUDA graph, replay it on other values, and compare bits."""
    count, failures = 0, []
    for declaration, sample, dtype in _small_samples():
        args, other = (sample.build(Maker(dtype, "cuda", seed)) for seed in (0, 1))
        if any(_overlaps(x) for x in _tensors(args)):
            continue  # new values cannot be written into an expanded view
        count += 1
        if not replays_like_eager(checking.fused(declaration), args, other):
            failures.append(f"{declaration.op}, {sample.name}, {dtype}")
    click.echo(f"{count - len(failures)} of {count} graphs replay the bits of an eager call")
    if failures:
        click.echo("\n".join(failures), err=True)
        sys.exit(1)


def replays_like_eager(op: Callable, args: tuple, other: tuple) -> bool:
    """Capture `op` and its gradients on `args`, write the values of `other` there, and replay."""
    inputs = [differentiable(x) for x in _tensors(args)]
    wanted = [x for x in inputs if x.requires_grad]
    leaves, tree = pytree.tree_flatten(args)
    replacements = iter(inputs)
    leaves = [next(replacements) if isinstance(x, Tensor) else x for x in leaves]
    static = pytree.tree_unflatten(leaves, tree)
    grads = [torch.ones_like(x) for x in _outputs(op, static) if x.requires_grad]

    def step() -> list[Tensor]:
        outputs = _outputs(op, static)
        roots = [x for x in outputs if x.requires_grad]
        return [*outputs, *torch.autograd.grad(roots, wanted, grads)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # lazy loading and Triton's compilation cannot be captured
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for target, value in zip(inputs, _tensors(other), strict=True):
            target.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    return all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def _small_samples() -> Iterator[tuple[Declaration, Sample, torch.dtype]]:
    for declaration in declarations().values():
        for sample in declaration.samples:
            for dtype in DTYPES if sample.cost == Cost.SMALL else ():
                yield declaration, sample, dtype


def _outputs(op: Callable, args: tuple) -> list[Tensor]:
    result = op(*args)
    return [result] if isinstance(result, Tensor) else list(result)


def _tensors(args: tuple) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]


def _overlaps(x: Tensor) -> bool:
    return any(n > 1 and s == 0 for n, s in zip(x.shape, x.stride(), strict=True))


if __name__ == "__main__":
    main()
