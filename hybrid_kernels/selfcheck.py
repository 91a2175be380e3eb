"""Prove every op on this machine, on every backend that it has: ``hybrid-kernels check``."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from . import _native, backends, checking, info
from .samples import Cost, Declaration, Maker, Sample, declarations

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Target:
    """A backend on a device; for compiled CPU code, at one instruction set."""

    backend: str
    device: str
    isa: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.isa}" if self.isa else self.backend

    @property
    def is_lowered(self) -> bool:
        """Whether a better instruction set than this is in use."""
        return self.isa not in (None, _native.cpu_isa())

    @property
    def is_interpreted(self) -> bool:
        """Whether GPU code runs on the processor, where a window takes milliseconds."""
        return self.backend in ("cuda", "triton") and self.device == "cpu"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Ops are served by this target inside the ``with`` block."""
        before = _native.cpu_isa()
        with backends.use_backend(self.backend):
            if self.isa:
                _native.set_cpu_isa(self.isa)
            try:
                yield
            finally:
                _native.set_cpu_isa(before)


@dataclass
class Outcome:
    """All samples of an op on one target in one dtype."""

    op: str
    target: Target
    dtype: torch.dtype
    samples: int = 0
    worst: float = 0.0  # largest error / allowed error; above 1 is a failure
    failures: list[str] = field(default_factory=list)

    def add(self, sample: Sample, verdicts: Sequence[checking.Verdict]) -> None:
        self.samples += 1
        for verdict in verdicts:
            if verdict.ok:
                # What is exact may be allowed no error at all.
                share = verdict.error / verdict.allowed if verdict.allowed else 0.0
                self.worst = max(self.worst, share)
            else:
                self.fail(
                    sample,
                    f"{verdict.name} differs from float64 by {verdict.error:.3g}, "
                    f"allowed are {verdict.allowed:.3g}",
                )

    def fail(self, sample: Sample, message: str) -> None:
        self.worst = float("inf")
        self.failures.append(
            f"{self.op}, {self.target.name}, {self.dtype}, {sample.name}: {message}"
        )


def targets(backend: str | None = None) -> list[Target]:
    """What can be proved here: every available backend, or only the one named.

    Raises:
        RuntimeError: the backend named is not available; says how to get it.
    """
    wanted = [backend] if backend else ["cpu", "cuda", "triton"]
    found = []
    for name in wanted:
        try:
            with backends.use_backend(name):
                found += _of_backend(name)
        except RuntimeError:
            if backend:
                raise
    return found


def _of_backend(name: str) -> list[Target]:
    if name == "cpu":
        return [Target("cpu", "cpu", isa) for isa in reversed(info.available_isas())]
    if name == "reference":
        return [Target(name, device) for device in info.devices()]
    # CUDA code is on CPU tensors in the host emulator, Triton's in its interpreter.
    return [Target(name, info.devices()[-1])]


def rounds(op_names: Sequence[str], quick: bool) -> list[tuple[Declaration, torch.dtype, Sample]]:
    """What to run: every sample in every dtype, the huge ones in float32 only.

    A quick run takes the small ones in two dtypes.
    """
    dtypes = DTYPES[:2] if quick else DTYPES
    return [
        (declaration, dtype, sample)
        for op, declaration in declarations().items()
        if op in op_names
        for dtype in dtypes
        for sample in declaration.samples
        if sample.cost == Cost.SMALL
        or not (quick or (sample.cost == Cost.HUGE and dtype != torch.float32))
    ]


def prove(
    declaration: Declaration,
    dtype: torch.dtype,
    sample: Sample,
    chosen: Sequence[Target],
    outcomes: dict[tuple[str, Target, torch.dtype], Outcome],
) -> None:
    """Run one sample on every target that serves it, against one run of the references."""
    with _threads_worth_waking(sample):
        _prove(declaration, dtype, sample, chosen, outcomes)


@contextlib.contextmanager
def _threads_worth_waking(sample: Sample) -> Iterator[None]:
    """One thread for what takes microseconds: where others run too, threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if sample.cost >= Cost.LARGE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prove(
    declaration: Declaration,
    dtype: torch.dtype,
    sample: Sample,
    chosen: Sequence[Target],
    outcomes: dict[tuple[str, Target, torch.dtype], Outcome],
) -> None:
    for device in dict.fromkeys(target.device for target in chosen):
        here = [t for t in chosen if t.device == device and _serves(t, declaration, dtype, sample)]
        if not here:
            continue
        args = sample.build(Maker(dtype, device))
        wanted = checking.floating(args)
        plain = checking.run_reference(declaration, args, dtype, wanted)
        exact = checking.run_reference(declaration, args, torch.float64, wanted)
        for target in here:
            key = declaration.op, target, dtype
            outcome = outcomes.setdefault(key, Outcome(*key))
            try:
                with target.active():
                    got = checking.run(checking.fused(declaration), args, wanted)
            except Exception as problem:  # whatever it raises, it is this sample's failure
                outcome.fail(sample, f"{type(problem).__name__}: {problem}")
            else:
                outcome.add(sample, checking.compare(got, plain, exact))


def _serves(target: Target, declaration: Declaration, dtype: torch.dtype, sample: Sample) -> bool:
    if backends.service(declaration.op, target.device, target.backend).backend != target.backend:
        return False
    if dtype == torch.float64 and target.backend not in ("cpu", "reference"):
        return False
    return sample.cost == Cost.SMALL or not (target.is_interpreted or target.is_lowered)
