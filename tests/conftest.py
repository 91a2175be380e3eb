"""Parameters of the op suites."""

import harness
import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None and issubclass(metafunc.cls, harness.OpSuite):
        harness.pytest_parameters(metafunc.cls, metafunc)
