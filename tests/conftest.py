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
# Files whose tests share what takes long to make: a wheel, disassembled kernels, emulated ones.
SHARING = {"test_cuda_compile.py", "test_host_cuda.py", "test_packaging.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Such a file goes to one worker, and first; of all others a few tests at a time to any.

    A few: those that differ in their last parameter, such as the instruction set. pytest-xdist's
    own groups depend on a part of pytest that pytest 9 no longer has.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            shares = os.path.basename(file) in SHARING
            return file if shares else nodeid.rpartition("-")[0] or nodeid

    return Scheduling(config, log)


if "," in (orders := os.environ.get("HYBRID_EMU_ORDER", "")):

    @pytest.fixture(autouse=True, params=orders.split(","))
    def order_of_turns(request, monkeypatch) -> None:
        """Every test once in each of the orders that tests/host_cuda/run.py was given."""
        monkeypatch.setenv("HYBRID_EMU_ORDER", request.param)


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
