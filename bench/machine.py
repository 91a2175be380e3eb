"""What a result was measured on and with."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from hybrid_kernels import _native

ROOT = Path(__file__).resolve().parent.parent


def device_name(device: str) -> str:
    """Name of the GPU or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = cpu_info()
    return f"{cpu.get('model name', platform.machine())} family {cpu.get('cpu family', '-')}"


def device_slug(device: str) -> str:
    """Name of the folder of results: lower case, with the threads of a CPU."""
    name = device_name(device)
    if device == "cpu":
        name += f" {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_info() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def git_revision() -> str:
    """Revision of the checkout, with "+changes" when a tracked file differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    revision = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results")
    return f"{revision or 'unknown'}{'+changes' if changed else ''}"


def describe(device: str) -> dict[str, object]:
    """Everything that a reader needs to judge or repeat a measurement, ready for JSON."""
    build = _native.build_info()
    return {
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_isa": _native.cpu_isa(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "hybrid-kernels": build["version"],
            "compiler": build["compiler"],
            "cuda": build["cuda_version"],
        },
        "git_revision": git_revision(),
        # What changes how memory is had, and the library's own switches.
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "HYBRID_", "OMP_NUM_THREADS"))
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *_module_arguments()]),
    }


def _module_arguments() -> list[str]:
    script = Path(sys.argv[0])
    if script.is_relative_to(ROOT):
        return ["-m", ".".join(script.relative_to(ROOT).with_suffix("").parts), *sys.argv[1:]]
    return [script.name, *sys.argv[1:]]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
