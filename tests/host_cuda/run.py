"""Run Python with the emulated library: the ordinary tests then test the CUDA kernels.

    python tests/host_cuda/run.py plain                     the suites of all ops with CUDA kernels
    python tests/host_cuda/run.py tsan --order 7 -- -m pytest tests/test_atrous_attention.py -k f32

Builds the library, sets HYBRID_KERNELS_LIBRARY and HYBRID_EMU_ORDER (in which order threads take
their turns: fwd, rev or a seed; of several, as in rev,1,2, pytest runs every test in each) and runs
Python with the arguments behind `--`. Exit status: that of Python, or 1 when a sanitizer found
something; its report is printed at the end, because a test runner may have swallowed it. Where the
CUDA headers are missing it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from host_cuda import build


def sanitizer_env(variant: str, log: Path | None = None) -> dict[str, str]:
    """What to add to the environment of a process that loads this variant.

    With `log`, reports go to the files LOG.<process id> instead of stderr.
    """
    if variant == "plain":
        return {}
    to_log = f":log_path={log}" if log else ""
    return {
        "LD_PRELOAD": " ".join(build.sanitizer_libraries(variant)),
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=0{to_log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1{to_log}",
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode=66:history_size=4{to_log}",
        "OMP_NUM_THREADS": "1",  # the pools of torch and numpy are not instrumented
        "OPENBLAS_NUM_THREADS": "1",
    }


def sanitizer_prefix(variant: str) -> list[str]:
    """Command in front of Python: older ThreadSanitizers need addresses without randomness."""
    if variant != "tsan" or not shutil.which("setarch"):
        return []
    works = subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    return ["setarch", "-R"] if works else []


def run_python(
    variant: str,
    arguments: list[str],
    environment: dict[str, str] | None = None,
    capture: bool = False,
) -> tuple[int, str]:
    """Run this Python under the variant's sanitizers.

    Returns the exit status (1 if it was 0 in spite of a report) and the sanitizers' reports, with
    `capture` all other output in front of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | sanitizer_env(variant, Path(folder) / "report") | (environment or {})
        if variant != "plain":  # UBSan beside ASan ignores log_path: leave it the real stderr
            env["PYTEST_ADDOPTS"] = f"{env.get('PYTEST_ADDOPTS', '')} --capture=sys"
        command = [*sanitizer_prefix(variant), sys.executable, *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if capture else {}
        result = subprocess.run(command, env=env, text=True, **streams)
        reports = "\n".join(p.read_text(errors="replace") for p in sorted(Path(folder).iterdir()))
    status = result.returncode
    if reports and status == 0:
        status = 1
    return status, (result.stdout or "") + reports


def default_arguments(variant: str) -> list[str]:
    """pytest on the suites of the ops that have CUDA kernels.

    Under a sanitizer only values and gradients: other tests run the same kernels again. Under
    ThreadSanitizer, which is slow, not float16, whose kernels are those of bfloat16.
    """
    ops = sorted(path.parent.name for path in build.CSRC.glob("*/*_cuda.cu"))
    suites = [build.ROOT / "tests" / f"test_{op}.py" for op in ops]
    chosen = {
        "plain": [],
        "asan": ["-k", "values_and_gradients"],
        "tsan": ["-k", "values_and_gradients and (float32 or bfloat16)"],
    }[variant]
    return ["-m", "pytest", "-q", *chosen, *(str(suite) for suite in suites if suite.exists())]


def main() -> int:
    own, separator, python_arguments = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description="Run Python with the emulated CUDA kernels.",
        usage="run.py VARIANT [--order ORDER] [-- python-arguments...]",
    )
    parser.add_argument("variant", choices=list(build.VARIANTS))
    parser.add_argument("--order", default="fwd", help="fwd, rev or a seed; or several: rev,1,2")
    options = parser.parse_args(own)
    try:
        library = build.build_library(options.variant)
        status, reports = run_python(
            options.variant,
            python_arguments if separator else default_arguments(options.variant),
            {"HYBRID_KERNELS_LIBRARY": str(library), "HYBRID_EMU_ORDER": options.order},
        )
    except build.Unavailable as reason:
        print(f"skipped: the CUDA kernels are not emulated here, {reason}")
        return 0
    except build.native.BuildError as problem:
        sys.exit(f"error: {problem}")
    if reports:
        print(reports, file=sys.stderr)
    return status


def _split(arguments: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in arguments:
        return arguments, False, []
    at = arguments.index("--")
    return arguments[:at], True, arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(main())
