"""Run every suite, each in its own process, and count: `make test`.

Triton's interpreter, the host emulator and its sanitizers each need their own process, because
what they replace is chosen when Python starts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "test-results"

PYTEST = ["-m", "pytest", "-q"]
TWO_WORKERS = ["-n", "2"]


@dataclass(frozen=True)
class Suite:
    """A command of this Python that runs pytest, and what it sets in the environment."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def tests_of(ops: Iterable[str]) -> list[str]:
    """The test files of these operators."""
    return sorted(f"tests/test_{op}.py" for op in ops if (ROOT / f"tests/test_{op}.py").exists())


# The tests of the operators run again on every implementation; all others run once.
TRITON_TESTS = tests_of(path.stem for path in (ROOT / "hybrid_kernels" / "triton").glob("*.py"))
TRITON_TESTS += ["tests/test_triton_interpreter.py"]
CPU_TESTS = tests_of(path.parent.name for path in (ROOT / "csrc").glob("*/*_cpu.cpp"))
CUDA_TESTS = tests_of(path.parent.name for path in (ROOT / "csrc").glob("*/*_cuda.cu"))

# Every way of running repeats the values and gradients, on the samples that it can afford (see
# samples.Cost and harness.highest_cost); where it is slow, without float16, whose code is that of
# bfloat16.
VALUES = "test_values_and_gradients"
TWO_DTYPES = f"({VALUES} and (float32 or bfloat16))"

INTERPRETED_TESTS = f"{VALUES} or test_triton_interpreter or bad_arguments or second_derivative"
INTERPRETED = {"TRITON_INTERPRET": "1", "HYBRID_KERNELS_BACKEND": "triton"}


def emulated(mode: str, order: str, chosen: str = "") -> Suite:
    """The CUDA kernels on the host: how compiled, and in which order threads take their turns."""
    command = ["tests/host_cuda/run.py", mode, "--order", order, "--"]
    command += [*PYTEST, *TWO_WORKERS, "-k", chosen, *CUDA_TESTS]
    return Suite(f"cuda-{mode}-{order}", command)


SUITES = [
    Suite("cpu", [*PYTEST, *TWO_WORKERS, "tests"]),
    Suite("triton", [*PYTEST, *TWO_WORKERS, "-k", INTERPRETED_TESTS, *TRITON_TESTS], INTERPRETED),
    Suite("cpu-asan", ["tests/cpu_asan.py", *PYTEST, *TWO_WORKERS, "-k", TWO_DTYPES, *CPU_TESTS]),
    emulated("plain", "fwd"),
    emulated("plain", "rev,1,2", VALUES),
    emulated("asan", "fwd", VALUES),
    emulated("tsan", "fwd", TWO_DTYPES),
]


@dataclass
class Counts:
    """Tests of a suite by outcome, its wall time, and the time in the tests of every file."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    seconds_in: Counter[str] = field(default_factory=Counter)


def run(suite: Suite) -> Counts:
    """Run one suite with its output on the terminal; count from the report that pytest writes."""
    report = RESULTS / f"{suite.name}.xml"
    print(f"\n=== {suite.name}: python {' '.join(suite.command)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | suite.environment
    environment["PYTEST_ADDOPTS"] = f"--junitxml={report}"
    begin = time.perf_counter()
    status = subprocess.run([sys.executable, *suite.command], cwd=ROOT, env=environment).returncode
    if report.exists():
        counts = read_report(report)
    else:  # it could not start, or found nothing that it can run here and said why
        counts = Counts(skipped=1)
    if status != 0 and counts.failed == 0:
        counts.failed = 1
    counts.seconds = time.perf_counter() - begin
    return counts


def read_report(report: Path) -> Counts:
    """Counts of a JUnit report."""
    counts = Counts()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        counts.failed += failed
        counts.skipped += skipped
        counts.passed += int(suite.get("tests", 0)) - failed - skipped
        for case in suite.iter("testcase"):
            file = re.search(r"test_\w+", case.get("classname") or case.get("name"))[0]
            counts.seconds_in[file] += float(case.get("time", 0))
    return counts


def slowest_files(results: dict[str, Counts], most: int = 10) -> list[str]:
    """The files whose tests took longest, over all workers of a suite."""
    seconds = Counter(
        {(suite, file): s for suite, c in results.items() for file, s in c.seconds_in.items()}
    )
    lines = [f"{suite:20} {file:40} {s:8.0f}" for (suite, file), s in seconds.most_common(most)]
    return [f"{'suite':20} {'longest files':40} {'seconds':>8}", *lines]


def main() -> int:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for old in RESULTS.iterdir():
        old.unlink()
    wanted = sys.argv[1:] or [suite.name for suite in SUITES]
    if unknown := set(wanted) - {suite.name for suite in SUITES}:
        sys.exit(f"unknown suite {unknown}: choose from {[suite.name for suite in SUITES]}")
    results = {suite.name: run(suite) for suite in SUITES if suite.name in wanted}

    lines = slowest_files(results)
    lines += ["", f"{'suite':20} {'passed':>8} {'failed':>8} {'skipped':>8} {'seconds':>8}"]
    for name, c in results.items():
        lines.append(f"{name:20} {c.passed:8} {c.failed:8} {c.skipped:8} {c.seconds:8.0f}")
    passed = sum(c.passed for c in results.values())
    failed = sum(c.failed for c in results.values())
    seconds = sum(c.seconds for c in results.values())
    lines.append(f"{passed + failed} tests in {seconds:.0f} s")
    lines.append(f"{passed} passed, {failed} failed")
    summary = "\n".join(lines)
    (RESULTS / "summary.txt").write_text(summary + "\n")
    print(f"\n{summary}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
