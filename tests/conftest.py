"""Parameters of the suites of operators and models."""

import os

import harness
import model_suite
import pytest

import hybrid_kernels

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton_interpreter

    triton_interpreter.repair_bfloat16()
    triton_interpreter.guard_memory()
    triton_interpreter.patch_once_a_launch()

# An output in memory that an earlier run has used would hold the right values even where a kernel
# forgets to write them. test_output_cache.py switches it on.
hybrid_kernels.set_output_cache(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for module, suite in ((harness, harness.OpSuite), (model_suite, model_suite.ModelSuite)):
        if metafunc.cls is not None and issubclass(metafunc.cls, suite):
            module.pytest_parameters(metafunc.cls, metafunc)


def pytest_terminal_summary(terminalreporter) -> None:
    """What the checks against other implementations recorded, whatever worker they ran on."""
    lines = [
        f"{report.nodeid.rpartition('/')[2]}: {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "difference"
    ]
    if lines:
        terminalreporter.section("relative differences from other implementations, float64")
        terminalreporter.line("\n".join(lines))
