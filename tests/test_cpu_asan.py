"""The sanitized build of the CPU kernels reports mistakes: cpu_faults.cpp makes one at a time."""

import subprocess
import sys
from pathlib import Path

import cpu_asan
import pytest
from host_cuda import run
from host_cuda.build import Unavailable

from hybrid_kernels import info

# What the report says, by kernel in the order of cpu_faults.cpp.
FAULTS = {
    "none": None,
    "past_the_end": "heap-buffer-overflow",
    "before_the_start": "heap-buffer-overflow",
    "read_past_the_end": "heap-buffer-overflow",
    "after_free": "heap-use-after-free",
    "past_a_tile": "stack-buffer-overflow",
    "past_a_list": "out of bounds for type",
    "offset_overflow": "signed integer overflow",
    "shift_too_far": "shift exponent",
    "odd_flag": "not a valid value for type 'bool'",
    "misaligned": "store to misaligned address",
}
RUN = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run_kernel(int(sys.argv[2]))"


@pytest.fixture(scope="module", params=sorted({"baseline", info.available_isas()[-1]}))
def library(request) -> Path:
    """Of the plainest and of the widest vectors."""
    try:
        run.sanitizer_env("asan")
    except Unavailable as reason:
        pytest.skip(str(reason))
    return cpu_asan.build_faults(request.param)


@pytest.mark.parametrize("kernel", FAULTS)
def test_fault_is_reported(library: Path, kernel: str):
    arguments = ["-c", RUN, str(library), str(list(FAULTS).index(kernel))]
    status, output = run.run_python("asan", arguments, capture=True)
    if FAULTS[kernel] is None:
        assert status == 0, output
    else:
        assert status != 0
        assert FAULTS[kernel] in output


def test_a_fault_goes_unnoticed_without_the_sanitizers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cpu_asan, "CPU_FLAGS", ("-O1", "-w"))
    monkeypatch.setattr(cpu_asan, "BUILD_DIR", tmp_path)
    number = str(list(FAULTS).index("read_past_the_end"))
    command = [sys.executable, "-c", RUN, str(cpu_asan.build_faults("baseline")), number]
    assert subprocess.run(command).returncode == 0
