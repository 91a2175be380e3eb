"""What is installed, built and running: the facts behind ``hybrid-kernels info``."""

import dataclasses
import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from typing import Any

import torch

from . import _native, backends
from .nn import fused_ops
from .ops import multiscale_fits_cache, single_query_form
from .output_cache import output_cache_info

# Queries, heads, channels of blocks that attend from a few queries; a head has channels / heads.
FEW_QUERIES = {
    "PartialFormer-B3 stage 1": (1, 4, 64),
    "PartialFormer-B3 stage 2": (1, 8, 128),
    "PartialFormer-B3 stage 3": (1, 16, 256),
    "MCGA stage 1": (8, 2, 32),
    "MCGA stage 2": (8, 2, 64),
    "MCGA stage 3": (8, 4, 128),
    "16 queries of 4 channels": (16, 4, 16),
}

# Queries, keys of one head of blocks that attend from many queries.
MANY_QUERIES = {
    "MRL stage 1, 224": (49, 49),
    "MSCSA, 224": (49, 74),
    "EMSNet stage 1, 160": (100, 100),
    "MRL stage 1, 384": (144, 144),
    "MRL stage 0, 384": (576, 576),
    "CvT stage 1, 224": (784, 196),
    "CvT stage 0, 224": (3136, 784),
    "MSCSA, 800x1280": (1000, 1386),
}


def gather() -> dict[str, Any]:
    """Versions, processor, GPU, and what serves each op, ready for JSON."""
    build = _native.build_info()
    return {
        "versions": {
            "hybrid-kernels": build["version"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
        },
        "library": {
            "path": str(_native.library_path()),
            "compiler": build["compiler"],
            "cuda_version": build["cuda_version"],
            "cuda_archs": build["cuda_archs"],
            "emulator": build["emulator"],
        },
        "cpu": {
            "model": cpu_model(),
            "threads": torch.get_num_threads(),
            "isa_in_use": _native.cpu_isa(),
            "isas_available": available_isas(),
            "isas_built": build["cpu_isas"],
            "output_cache": dataclasses.asdict(output_cache_info()),
        },
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "backend": backends.get_backend(),
        "ops": [_service(op, device) for op in backends.op_names() for device in devices()],
        "model_ops": fused_ops(),
        "single_query_forms": [_form(name, *shape) for name, shape in FEW_QUERIES.items()],
        "multiscale_regimes": [] if build["emulator"] else _regimes(),
    }


def devices() -> list[str]:
    """Device types that tensors can be on here."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def available_isas() -> list[str]:
    """Instruction sets that the library was built with and this processor has."""
    in_use, available = _native.cpu_isa(), []
    for isa in _native.build_info()["cpu_isas"]:
        try:
            _native.set_cpu_isa(isa)
            available.append(isa)
        except ValueError:  # beyond this processor
            continue
    _native.set_cpu_isa(in_use)
    return available


def cpu_model() -> str:
    """Name of the processor, as the kernel gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpu(index: int) -> dict[str, str | float]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "arch": f"sm_{properties.major}{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
    }


def _form(name: str, queries: int, heads: int, channels: int) -> dict[str, Any]:
    form = single_query_form(queries, heads, channels, channels // heads)
    shape = {"name": name, "queries": queries, "heads": heads, "channels": channels}
    return shape | dataclasses.asdict(form)


def _regimes() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "queries": queries,
            "keys": keys,
            "fits_cache": multiscale_fits_cache(queries, keys),
        }
        for name, (queries, keys) in MANY_QUERIES.items()
    ]


def _service(op: str, device: str) -> dict[str, str]:
    service = backends.service(op, device)
    return {"op": op, "device": device, "backend": service.backend, "reason": service.reason}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
