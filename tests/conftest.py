"""Parameters of the op suites."""

import os

import harness
import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton_interpreter

    triton_interpreter.repair_bfloat16()
    triton_interpreter.guard_memory()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None and issubclass(metafunc.cls, harness.OpSuite):
        harness.pytest_parameters(metafunc.cls, metafunc)
