"""The CUDA host emulator: right kernels pass, wrong ones are caught, wrappers do what PTX says."""

from __future__ import annotations

import subprocess
from types import ModuleType

import numpy as np
import pytest
from host_cuda import build, compare_wrappers, run
from host_cuda.selftest import cases

ORDERS = ["fwd", "rev", "1", "7"]
SANITIZERS = ["asan", "tsan"]

# Which build finds each mistake, and what it says. plain/ORDER: an ordinary build, with threads
# taking their turns in that order, by a wrong value or by a refused launch.
CAUGHT_BY = {
    "no_sync": [("plain/fwd", "wrong by nan"), ("plain/rev", "wrong by"), ("tsan", "data race")],
    "divergent": [("plain/fwd", "divergent barriers")],
    "early_exit": [("plain/fwd", "96 threads wait in __syncthreads but 32 have exited")],
    "out_of_bounds": [("asan", "heap-buffer-overflow")],
    "shared_out_of_bounds": [("asan", "index 4 out of bounds"), ("plain/rev", "wrong by")],
    "no_warp_sync": [("plain/fwd", "wrong by nan"), ("plain/7", "wrong"), ("tsan", "data race")],
    "inter_block": [("plain/fwd", "wrong by"), ("tsan", "data race")],
    "flash_no_sync": [("plain/fwd", "wrong by nan"), ("tsan", "data race")],
    "flash_short_wait": [("plain/fwd", "wrong by nan"), ("plain/rev", "wrong by nan")],
    "flash_write_after_read": [("tsan", "data race")],
    "shared_too_small": [("asan", "use-after-poison")],
    "misaligned_rows": [("plain/fwd", "not 16-byte aligned")],
    "divergent_mask": [("plain/fwd", "warp divergence: __shfl_xor_sync")],
}
CAUGHT = [(bug, where, text) for bug, found in CAUGHT_BY.items() for where, text in found]


@pytest.fixture(scope="module")
def selftest() -> ModuleType:
    try:
        return cases.load(str(build.build_selftest("plain")))
    except build.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def wrappers() -> dict[str, compare_wrappers.Run]:
    try:
        return compare_wrappers.load(build.build_wrappers("plain"))
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def run_sanitized(variant: str, bug: str) -> tuple[int, str]:
    try:
        module = build.build_selftest(variant)
        return run.run_python(variant, [cases.__file__, str(module), bug], capture=True)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def test_all_seeded_bugs_have_a_catcher():
    assert set(CAUGHT_BY) == set(cases.BUGS) - {"none"}
    assert len(CAUGHT_BY) >= 13


@pytest.mark.parametrize("order", ORDERS)
def test_right_kernels_are_right_in_order(selftest, order, monkeypatch):
    monkeypatch.setenv("HYBRID_EMU_ORDER", order)
    assert cases.problems(selftest, "none") == []


@pytest.mark.parametrize("variant", SANITIZERS)
def test_right_kernels_are_clean_under(variant):
    status, output = run_sanitized(variant, "none")
    assert status == 0, output


@pytest.mark.parametrize(("bug", "where", "text"), CAUGHT)
def test_seeded_bug_is_caught(selftest, bug, where, text, monkeypatch):
    if where.startswith("plain/"):
        monkeypatch.setenv("HYBRID_EMU_ORDER", where.removeprefix("plain/"))
        assert any(text in problem for problem in cases.problems(selftest, bug))
    else:
        status, output = run_sanitized(where, bug)
        assert status != 0
        assert text in output


def test_block_sum_has_the_same_bits_in_every_order(selftest, monkeypatch):
    x = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    results = []
    for order in ORDERS:
        monkeypatch.setenv("HYBRID_EMU_ORDER", order)
        sums = np.full(5, np.nan, np.float32)
        assert selftest.block_sum(x, sums) == (x < 0).sum()
        results.append(sums)
    np.testing.assert_allclose(results[0], x.sum(1, dtype=np.float64), rtol=0, atol=1e-4)
    for sums in results[1:]:
        np.testing.assert_array_equal(sums, results[0])


@pytest.mark.parametrize("order", ORDERS)
def test_every_block_finds_unwritten_shared_memory(selftest, order, monkeypatch):
    monkeypatch.setenv("HYBRID_EMU_ORDER", order)
    assert (selftest.read_unwritten(3) == 0xFFFFFFFF).all()


def test_unknown_order_is_refused(selftest, monkeypatch):
    monkeypatch.setenv("HYBRID_EMU_ORDER", "forward")
    with pytest.raises(RuntimeError, match="HYBRID_EMU_ORDER=forward: expected fwd, rev or a numb"):
        selftest.nothing((1, 1, 1), (32, 1, 1))


@pytest.mark.parametrize(
    ("grid", "block"),
    [((1, 1, 1), (1024, 1, 1)), ((1, 1, 1), (1, 1, 64)), ((70000, 1, 1), (1, 1, 1))],
)
def test_largest_launches_run(selftest, grid, block):
    selftest.nothing(grid, block)


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((1, 1, 1), (1025, 1, 1)),
        ((1, 1, 1), (1, 1, 65)),
        ((1, 1, 1), (0, 1, 1)),
        ((0, 1, 1), (32, 1, 1)),
        ((2**31, 1, 1), (1, 1, 1)),
        ((1, 65536, 1), (1, 1, 1)),
        ((1, 1, 65536), (1, 1, 1)),
    ],
)
def test_launch_that_a_gpu_refuses_is_refused(selftest, grid, block):
    with pytest.raises(RuntimeError, match=r"error 9: (grid|block) \(.*\): expected"):
        selftest.nothing(grid, block)


def test_much_shared_memory_needs_the_opt_in(selftest):
    with pytest.raises(RuntimeError, match="error 1: launch with 50000 bytes of dynamic shared"):
        selftest.nothing((1, 1, 1), (32, 1, 1), 50000)
    selftest.nothing((1, 1, 1), (32, 1, 1), 50000, 50000)
    with pytest.raises(RuntimeError, match="more than 227 KiB"):
        selftest.nothing((1, 1, 1), (32, 1, 1), 0, 227 * 1024 + 1)


def test_lanes_that_meet_in_different_calls_are_reported(selftest):
    with pytest.raises(RuntimeError, match=r"warp divergence: __(ballot|shfl)_sync .* meets __"):
        selftest.two_collectives()


# Every wrapper against numpy.


def halves(words: np.ndarray) -> np.ndarray:
    return words.view(np.uint16)


def expect_ldmatrix(words: np.ndarray, transpose: bool) -> np.ndarray:
    matrices = halves(words).reshape(4, 8, 8)
    if transpose:
        matrices = matrices.swapaxes(1, 2)
    # (matrix, row, pair, 2) -> lane (row, pair), register matrix
    pairs = matrices.reshape(4, 32, 2).swapaxes(0, 1)
    return np.ascontiguousarray(pairs).view(np.uint32).ravel()


def expect_mma(words: np.ndarray, bfloat16: bool) -> np.ndarray:
    lanes = words.reshape(32, 10)
    bits = np.ascontiguousarray(lanes[:, :6]).view(np.uint16)
    floats = (bits.astype(np.uint32) << 16).view(np.float32) if bfloat16 else bits.view(np.float16)
    floats = floats.astype(np.float64).reshape(8, 4, 6, 2)  # g, t / 2, register, half
    a = np.empty((16, 16))
    for register in range(4):
        rows, columns = register % 2 * 8, register // 2 * 8
        a[rows : rows + 8, columns : columns + 8] = floats[:, :, register].reshape(8, 8)
    b = np.concatenate([floats[:, :, 4].reshape(8, 8), floats[:, :, 5].reshape(8, 8)], axis=1).T
    c = np.ascontiguousarray(lanes[:, 6:]).view(np.float32).reshape(8, 4, 2, 2)
    product = (a @ b).reshape(2, 8, 4, 2).transpose(1, 2, 0, 3)  # g, t / 2, row half, column
    return (c + product).astype(np.float32).view(np.uint32).ravel()


def expect_cp_async(words: np.ndarray) -> np.ndarray:
    copied = words.view(np.uint8).reshape(2, 32, 16).copy()
    for lane in range(32):
        copied[:, lane, lane % 17 :] = 0
    return copied.view(np.uint32).ravel()


def expect_shuffles(words: np.ndarray) -> np.ndarray:
    values, operands, lanes = words[:32], words[32:].astype(int), np.arange(32)
    expected = []
    for width in (32, 8):
        first = lanes // width * width
        last = first + width - 1
        sources = [first + operands % width, lanes ^ operands, lanes + operands, lanes - operands]
        inside = [lanes >= 0, sources[1] <= last, sources[2] <= last, sources[3] >= first]
        expected += [values[np.where(i, s, lanes)] for s, i in zip(sources, inside, strict=True)]
    return np.concatenate(expected)


def expect_votes(words: np.ndarray) -> np.ndarray:
    flags = words != 0
    warps = flags.reshape(4, 32)
    ballots = (warps * (1 << np.arange(32))).sum(1)
    ballot = np.repeat(ballots, 32)
    half = np.where(np.arange(128) % 32 < 16, ballot & 0xFFFF, ballot & 0xFFFF0000)
    every = [np.full(128, f) for f in (flags.sum(), flags.all(), flags.any())]
    columns = [ballot, np.repeat(warps.any(1), 32), np.repeat(warps.all(1), 32), half, *every]
    return np.stack(columns, axis=1).astype(np.uint32).ravel()


def expect_atomics(words: np.ndarray) -> np.ndarray:
    signed = words.view(np.int32)
    float_sum = (words % 16).sum(dtype=np.float32).view(np.uint32)
    total = words.sum(dtype=np.uint32)
    largest, least = max(signed.max(), 0), min(signed.min(), 0)
    expected = [total, np.int32(largest).view(np.uint32), np.int32(least).view(np.uint32)]
    return np.array([*expected, words[5], float_sum, 1], np.uint32)


def expect_conversions(words: np.ndarray) -> np.ndarray:
    x = words.view(np.float32)
    bfloat = compare_wrappers.round_to_bfloat16(x).astype(np.uint32)
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    half_bits = half.view(np.uint16).astype(np.uint32)
    pairs = [bits | np.roll(bits, -1) << 16 for bits in (bfloat, half_bits)]
    back = [bfloat << 16, half.astype(np.float32).view(np.uint32)]
    return np.stack([bfloat, half_bits, *pairs, *back], axis=1).ravel()


def expect_bits(words: np.ndarray) -> np.ndarray:
    texts = [f"{word:032b}" for word in words]
    rows = [
        (t.count("1"), 32 - t.rindex("1") if "1" in t else 0, t.index("1") if "1" in t else 32)
        for t in texts
    ]
    return np.array(rows, np.uint32).ravel()


def expect_fast_maths(words: np.ndarray) -> np.ndarray:
    x = words.view(np.float32).astype(np.float64)
    rows = [np.exp(x), np.log(x), np.log2(x), np.exp2(x), 1.5 / x, 1 / x, 1 / np.sqrt(x)]
    return np.stack(rows, axis=1).astype(np.float32).view(np.uint32).ravel()


EXPECTED = {
    "ldmatrix_x4": lambda words: expect_ldmatrix(words, transpose=False),
    "ldmatrix_x4_trans": lambda words: expect_ldmatrix(words, transpose=True),
    "mma_16816<bfloat16>": lambda words: expect_mma(words, bfloat16=True),
    "mma_16816<float16>": lambda words: expect_mma(words, bfloat16=False),
    "cp_async16": expect_cp_async,
    "shuffles": expect_shuffles,
    "votes": expect_votes,
    "atomics": expect_atomics,
    "conversions": expect_conversions,
    "bits": expect_bits,
    "fast_maths": expect_fast_maths,
}


def test_every_wrapper_has_an_expectation(wrappers):
    assert set(wrappers) == set(EXPECTED)


@pytest.mark.parametrize("name", list(EXPECTED))
@pytest.mark.parametrize("order", ORDERS)
def test_wrapper_does_what_numpy_says(wrappers, name, order, monkeypatch):
    monkeypatch.setenv("HYBRID_EMU_ORDER", order)
    for words, tolerance in compare_wrappers.cases(name):
        found = compare_wrappers.difference(wrappers[name](words), EXPECTED[name](words), tolerance)
        assert not found, found


def test_comparison_of_wrappers_reports_a_flipped_bit(wrappers, capsys):
    flipped = dict(wrappers)
    flipped["shuffles"] = lambda words: wrappers["shuffles"](words) ^ 1
    assert compare_wrappers.compare(flipped, wrappers) == ["shuffles"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(wrappers)
    assert any("shuffles" in line and "256 of 256 words differ" in line for line in lines)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_wrappers_compile_for(arch, tmp_path):
    toolkit = build.find_cuda()
    if toolkit is None:
        pytest.skip("no nvcc here, and none by pip: pip install 'hybrid-kernels[nvcc]'")
    command = [str(toolkit.nvcc), "-std=c++17", f"-arch={arch}", f"-I{build.CSRC}", "-cubin"]
    command += [str(build.HERE / "wrappers.cu"), "-o", str(tmp_path / "wrappers.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
