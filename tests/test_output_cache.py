"""Large CPU outputs live in memory that is kept, and nobody can tell but by the clock."""

import copy
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import hybrid_kernels as hk
from hybrid_kernels.output_cache import limit_from_environment


@pytest.fixture(autouse=True)
def cache() -> Iterator[None]:
    if not hk.output_cache_info().supported:
        pytest.skip("torch < 2.11 makes no tensors with a deleter")
    hk.set_output_cache(64)
    yield
    hk.set_output_cache(0)


def output(mebibytes: int = 2, value: float = 1.0) -> Tensor:
    """An output of so many MiB, full of `value`: windows of a constant map."""
    x = torch.full((1, 64 * mebibytes, 64, 64), value)
    return hk.atrous_partition(x, window=8, dilation=1)


def test_a_freed_block_serves_the_next_output():
    first = output(value=1.0)
    place = first.data_ptr()
    assert hk.output_cache_info().kept_mb == 0
    del first
    assert hk.output_cache_info().kept_mb == pytest.approx(2, abs=0.1)
    second = output(value=2.0)
    assert second.data_ptr() == place
    assert hk.output_cache_info().kept_mb == 0
    assert (second == 2).all()


def test_outputs_in_use_never_share_memory():
    outputs = [output(value=float(i)) for i in range(4)]
    views = [o[:, :1] for o in outputs]
    del outputs
    again = [output(value=9.0) for _ in range(4)]
    for i, view in enumerate(views):
        assert (view == i).all()
    assert len({o.data_ptr() for o in again}) == 4


def test_a_much_smaller_output_does_not_take_a_large_block():
    del_me = output(8)
    del del_me
    small = output(2)
    assert hk.output_cache_info().kept_mb == pytest.approx(8, abs=0.1)
    assert (small == 1).all()


def test_the_limit_holds_and_the_oldest_block_leaves_first():
    hk.set_output_cache(5)
    outputs = [output(2) for _ in range(3)]
    newest = outputs[2].data_ptr()
    while outputs:
        outputs.pop(0)
    assert hk.output_cache_info().kept_mb == pytest.approx(4, abs=0.1)
    held = [output(2), output(2)]
    assert newest in [o.data_ptr() for o in held]


def test_emptying_leaves_tensors_in_use_alone():
    kept, freed = output(value=3.0), output(value=4.0)
    del freed
    hk.empty_output_cache()
    info = hk.output_cache_info()
    assert info.kept_mb == 0
    assert info.limit_mb == 64
    assert (kept == 3).all()


def test_a_limit_of_zero_keeps_nothing():
    hk.set_output_cache(0)
    del_me = output()
    del del_me
    assert hk.output_cache_info().kept_mb == 0


def test_small_outputs_are_left_to_the_allocator():
    small = hk.atrous_partition(torch.ones(1, 8, 8, 4), window=8, dilation=1)
    del small
    assert hk.output_cache_info().kept_mb == 0


def test_an_output_may_die_on_another_thread():
    box = [output()]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert hk.output_cache_info().kept_mb == pytest.approx(2, abs=0.1)


def test_training_gives_the_same_bits_with_and_without():
    def step() -> list[Tensor]:
        torch.manual_seed(0)
        qkv = torch.randn(2, 56, 56, 3, 3, 2, 32, requires_grad=True)
        bias = torch.randn(3, 169, 2, requires_grad=True)
        out = hk.atrous_attention(qkv, bias, [1, 2, 4], window=7)
        return [out, *torch.autograd.grad(out, [qkv, bias], torch.ones_like(out))]

    with_cache = [step(), step()][1]
    assert hk.output_cache_info().kept_mb > 0
    hk.set_output_cache(0)
    for a, b in zip(with_cache, step(), strict=True):
        assert torch.equal(a, b)


def test_such_an_output_is_an_ordinary_tensor():
    out = output(value=5.0)
    assert torch.equal(copy.deepcopy(out), out)
    assert torch.equal(torch.from_numpy(out.numpy().copy()), out)
    assert out.share_memory_().is_shared()
    assert (out.add_(1) == 6).all()


@pytest.mark.parametrize("megabytes", [-1, float("nan")])
def test_a_senseless_limit_is_refused(megabytes):
    with pytest.raises(ValueError, match=r"megabytes is .*; expected 0"):
        hk.set_output_cache(megabytes)


def test_the_environment_sets_the_limit(monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_OUTPUT_CACHE_MB", "3.5")
    limit_from_environment()
    assert hk.output_cache_info().limit_mb == 3.5
    monkeypatch.setenv("HYBRID_KERNELS_OUTPUT_CACHE_MB", "lots")
    with pytest.raises(ValueError, match="OUTPUT_CACHE_MB=lots: expected a number"):
        limit_from_environment()
