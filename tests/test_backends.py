"""The switch between backends, and what is said about it."""

import importlib
import os
import subprocess
import sys
import warnings

import pytest
import torch
from harness import DEVICE, backend

import hybrid_kernels
from hybrid_kernels import backends
from hybrid_kernels.ops._registration import register
from hybrid_kernels.samples import Maker
from hybrid_kernels.samples import atrous_attention as samples

ARGS = samples.DECLARATION.by_name["stage4"].build(Maker(torch.float32, DEVICE))


def call():
    return torch.ops.hybrid.atrous_attention(*ARGS)[0]


def test_use_backend_restores_the_one_before():
    before = hybrid_kernels.get_backend()
    with hybrid_kernels.use_backend("reference"):
        assert hybrid_kernels.get_backend() == "reference"
        inside = call()
    assert hybrid_kernels.get_backend() == before
    torch.testing.assert_close(inside, call())


def test_use_backend_restores_after_an_error():
    before = hybrid_kernels.get_backend()
    with pytest.raises(KeyError), hybrid_kernels.use_backend("reference"):
        raise KeyError
    assert hybrid_kernels.get_backend() == before


def test_reference_backend_really_runs_the_reference(monkeypatch):
    module = importlib.import_module("python_ref.ops.atrous_attention")

    def marked(qkv, bias, dilations, window, scale):
        out = qkv.new_full((*qkv.shape[:4], *qkv.shape[5:]), 42.0)
        return out, out[..., 0].float()

    monkeypatch.setattr(module, "atrous_attention", marked)
    with hybrid_kernels.use_backend("reference"):
        assert (call() == 42).all()
    assert not (call() == 42).any()


def test_a_compiled_graph_follows_the_switch():
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    default = compiled()
    with hybrid_kernels.use_backend("reference"):
        torch.testing.assert_close(compiled(), default)


def test_unknown_backend_lists_the_known():
    with pytest.raises(ValueError, match=r"'cudnn'; expected one of 'auto', 'reference', 'cpu'"):
        hybrid_kernels.set_backend("cudnn")


@pytest.mark.skipif(backend() != "cpu" or torch.cuda.is_available(), reason="needs no GPU at all")
def test_asking_for_a_gpu_backend_without_a_gpu_says_what_is_missing():
    with pytest.raises(RuntimeError, match="CUDA"):
        hybrid_kernels.set_backend("cuda")
    with pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1|pip install triton"):
        hybrid_kernels.set_backend("triton")


def test_environment_chooses_the_backend_and_refuses_a_wrong_name():
    script = "import hybrid_kernels as hk; print(hk.get_backend())"
    command = [sys.executable, "-c", script]
    chosen = subprocess.run(
        command, env=_environment("reference"), capture_output=True, text=True, check=True
    )
    assert chosen.stdout.strip() == "reference"
    refused = subprocess.run(command, env=_environment("fast"), capture_output=True, text=True)
    assert refused.returncode != 0
    assert "backend = 'fast'; expected one of" in refused.stderr


def _environment(name: str) -> dict[str, str]:
    return {**os.environ, "HYBRID_KERNELS_BACKEND": name}


def test_a_library_older_than_the_python_code_says_what_to_run():
    with pytest.raises(ImportError, match=r"has no op of_tomorrow: .* run `make build`"):
        register("of_tomorrow", module="of_tomorrow", check=print, fake=print)


def test_every_op_is_served_on_every_device_with_a_reason():
    for op in backends.op_names():
        for device_type in ("cpu", "cuda"):
            service = backends.service(op, device_type, "auto")
            assert service.backend in ("cpu", "cuda", "triton", "reference")
            assert service.reason


@pytest.mark.skipif(backend() != "cpu", reason="a fallback of the CPU build")
def test_a_fallback_is_announced_once(monkeypatch):
    entry = backends._ops["atrous_attention"]
    without = backends._Op(entry.module, entry.check, frozenset(), has_triton=False)
    monkeypatch.setitem(backends._ops, "atrous_attention", without)
    monkeypatch.setattr(backends, "_announced", set())
    backends._install("auto")
    try:
        with pytest.warns(
            RuntimeWarning, match=r"atrous_attention on cpu .* by reference: the lib"
        ):
            call()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
    finally:
        monkeypatch.undo()
        backends._install("auto")
