"""The benchmarks' own arithmetic, their baselines, and the script for machines with a GPU."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import uuid
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import (
    bench_atrous_attention,
    bench_models,
    gpu_checks,
    machine,
    readme,
    report,
    stages,
)
from bench.attention_baselines import flex_formulation, sdpa_formulation
from bench.bench_atrous_attention import attention_case
from bench.op_bench import OpBench, Options, count_work, measure_case
from bench.roofline import Limits, Work
from bench.timing import interleave
from hybrid_kernels import _native, samples
from hybrid_kernels.measure import Clock, Sample
from hybrid_kernels.models import list_models
from hybrid_kernels.samples import Cost, Maker, atrous_attention
from python_ref.ops import atrous_attention_out

GPU_SCRIPT = machine.ROOT / "bench" / "gpu.sh"
QUICK = Options(dtypes=("float32",), quick=True, compile=False, budget_s=0.0)
BASELINE_SAMPLES = ("stage3", "ragged_dilated", "dilation_beyond_map", "no_bias")
TINY = attention_case("tiny", "tiling", (1, 7, 7), 2, [1], head_width=8)


def bench_of(fused) -> OpBench:
    return OpBench(
        op="atrous_attention",
        fused=fused,
        eager=atrous_attention_out,
        cases=(TINY,),
        min_bytes=bench_atrous_attention.min_bytes,
    )


def test_roofline_is_the_slower_of_memory_and_arithmetic():
    limits = Limits(bytes_per_s=1e9, flops_per_s=1e12)
    assert limits.roofline_ms(Work(bytes=2_000_000, flops=10**9)) == pytest.approx(2.0)
    assert limits.bound(Work(bytes=2_000_000, flops=10**9)) == "memory"
    assert limits.roofline_ms(Work(bytes=2_000_000, flops=10**10)) == pytest.approx(10.0)
    assert limits.bound(Work(bytes=2_000_000, flops=10**10)) == "compute"


def test_work_of_stage_one_follows_from_its_shape():
    case = bench_atrous_attention.STAGES[0]
    args = case.build(Maker(torch.float32))
    args = (*(x.requires_grad_() for x in args[:2]), *args[2:])
    work = count_work(bench_atrous_attention.BENCH, args)
    tokens, branches, channels = 8 * 56 * 56, 4, 64
    assert work["forward"].flops == 4 * tokens * branches * channels * 49
    assert work["backward"].flops == work["forward"].flops * 5 // 2
    maps = tokens * branches * channels * 4  # bytes of one of q, k, v, out
    lse, table = tokens * branches * 2 * 4, branches * 169 * 2 * 4
    assert work["forward"].bytes == 4 * maps + lse + table
    assert work["backward"].bytes == 8 * maps + lse + 2 * table


@pytest.mark.parametrize("name", BASELINE_SAMPLES)
def test_sdpa_formulation_equals_the_reference(name):
    args = atrous_attention.DECLARATION.by_name[name].build(Maker(torch.float64))
    leaves = [x.requires_grad_() for x in args[:2] if x is not None]
    out, expected = sdpa_formulation(*args), atrous_attention_out(*args)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    grads = (torch.autograd.grad(x.square().sum(), leaves) for x in (out, expected))
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BASELINE_SAMPLES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_formulation_equals_the_reference(name):
    # Values only: flex_attention has no backward on the CPU.
    args = atrous_attention.DECLARATION.by_name[name].build(Maker(torch.float64))
    out, expected = flex_formulation(*args), atrous_attention_out(*args)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_case_is_measured_in_every_phase():
    rows = measure_case(bench_of(sdpa_formulation), TINY, "float32", QUICK)
    assert [row.phase for row in rows] == ["forward", "backward", "forward+backward"]
    for row in rows:
        assert row.ms.keys() == row.peak_mb.keys() == row.page_faults.keys() == {"fused", "eager"}
        assert row.best_baseline == "eager"
        assert row.speedup == pytest.approx(row.ms["eager"] / row.ms["fused"])
        assert row.percent_of_roofline == pytest.approx(100 * row.roofline_ms / row.ms["fused"])
        assert 0 < row.percent_of_copy <= row.percent_of_roofline
        assert row.inputs == "1x7x7x1x3x2x8, 1x169x2"
        assert row.reading_percent is None  # a single image cannot be repeated


def test_what_reading_costs_is_measured_on_a_batch_of_equal_images():
    seen = []

    def fused(qkv, *rest):
        seen.append(qkv)
        return sdpa_formulation(qkv, *rest)

    batch = attention_case("batch", "tiling", (3, 7, 7), 2, [1], head_width=8)
    rows = measure_case(bench_of(fused), batch, "float32", QUICK)
    equal = [qkv for qkv in seen if qkv.stride(0) == 0]
    assert equal and len(equal) < len(seen)
    assert equal[0].shape == seen[0].shape and torch.equal(equal[0][2], seen[0][0])
    for row in rows:
        assert row.ms.keys() == row.peak_mb.keys() == row.page_faults.keys() == {"fused", "eager"}
        assert row.reading_percent < 100
    (mean, *_) = report.geometric_means(rows)
    assert mean["reading_percent"] == pytest.approx(rows[0].reading_percent, rel=1e-3)


@pytest.mark.parametrize("mode", [bench_models.TRAIN, bench_models.INFER])
@pytest.mark.parametrize("name", ["emsnet_xxtiny", "mhvn"])
def test_model_is_measured_and_held_against_the_reference(name, mode, monkeypatch):
    small = {"depths": (1, 1, 1)} if name == "mhvn" else {"depths": (1, 1, 1, 1)}
    build = bench_models.create_model
    monkeypatch.setattr(bench_models, "create_model", lambda model: build(model, **small))
    case = bench_models.ModelCase(name, mode, 1, (64, 96))
    row, profile = bench_models.measure_model(case, "cpu", 0, with_compile=False)
    assert row.case == f"{name} {mode} 1x64x96 float32"
    assert row.speedup == pytest.approx(row.ms["reference"] / row.ms["accelerated"])
    kinds = {"outputs", "gradients"} if mode == bench_models.TRAIN else {"outputs"}
    assert row.error_of_allowed.keys() == kinds
    assert all(share <= 1 for share in row.error_of_allowed.values())
    assert row.layout_copies["accelerated"] <= row.layout_copies["reference"]
    assert "hybrid" in profile  # some of ours are among the costliest
    cells = readme._models_table([report.round_floats(asdict(row))]).splitlines()[-1].split(" | ")
    assert len(cells) == 10 and cells[7] == str(row.layout_copies["reference"])
    assert 0 < row.library_percent < 100


def test_models_are_trained_and_run_at_every_size():
    cases = bench_models.cases_of(bench_models.MODELS, "cpu", quick=False)
    assert len({case.name for case in cases}) == len(cases) == 8 * 2 * 2
    assert {case.model for case in cases} <= set(list_models())


def test_disagreeing_contestant_is_not_measured():
    def wrong(*args):
        return atrous_attention_out(*args) * 1.01

    with pytest.raises(RuntimeError, match="fused disagrees with the reference on tiny"):
        measure_case(bench_of(wrong), TINY, "float32", QUICK)


def test_contestants_run_once_a_round_behind_changing_ones():
    order = []

    class Contestant:
        def __init__(self, name):
            self.name = name

        def round(self, clock):
            order.append(self.name)
            return {"forward": Sample(1.0, 0)}

    samples = interleave([Contestant(name) for name in "abc"], Clock(), 0.0, (12, 15))
    assert order[:3] == ["a", "b", "c"]  # these are not counted
    rounds = [order[at : at + 3] for at in range(3, len(order), 3)]
    assert len(rounds) == 12 and all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert {tuple(names[:2]) for names in rounds} == {*itertools.permutations("abc", 2)}
    assert {name: len(phases["forward"]) for name, phases in samples.items()} == dict.fromkeys(
        "abc", 12
    )


def test_clock_sees_the_memory_and_the_page_faults_of_a_call():
    clock = Clock()
    pages = 4096
    peak = clock.peak_bytes(lambda: torch.ones(pages * 1024))  # 16 MiB
    assert 16 << 20 <= peak < 20 << 20
    _, quiet = clock.time(lambda: None)
    _, busy = clock.time(lambda: torch.ones(64 << 20))  # 256 MiB: always fresh from the system
    assert quiet.faults < 10 < busy.faults


def test_summary_holds_geometric_means_and_the_worst_case():
    assert report.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    row = measure_case(bench_of(sdpa_formulation), TINY, "float32", QUICK)[0]
    (line,) = report.geometric_means([row, row])
    assert line["cases"] == 2
    assert line["worst_case"] == "tiny"
    assert line["speedup"] == pytest.approx(row.speedup, rel=1e-3)


def test_csv_row_is_flat():
    flat = report.flatten({"ms": {"fused": 1.23456}, "fused_quartiles_ms": (1.0, 2.0), "case": "x"})
    assert flat == {
        "ms fused": 1.235,
        "fused_quartiles_ms 0": 1.0,
        "fused_quartiles_ms 1": 2.0,
        "case": "x",
    }


def test_results_say_where_they_come_from():
    facts = machine.describe("cpu")
    assert facts["versions"]["torch"] == torch.__version__
    assert len(facts["git_revision"].removesuffix("+changes")) in (len("unknown"), 40)
    assert machine.device_slug("cpu").endswith("threads")


def test_every_small_sample_runs_for_the_sanitizers():
    ran = list(gpu_checks.run_small_samples("cpu"))
    small = [s for d in samples.declarations().values() for s in d.samples if s.cost == Cost.SMALL]
    assert len(ran) == len(small) * len(gpu_checks.DTYPES) > 0


def gpu_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(GPU_SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture
def fake_gpu(tmp_path) -> dict[str, str]:
    """A machine with a GPU and a toolkit, as far as gpu.sh can tell: programs that only talk."""
    name = f"Test {uuid.uuid4().hex}"
    programs = {
        "nvidia-smi": f'[ "$1" = -L ] && echo "GPU 0" || echo "{name}"',
        "nvcc": "true",
        "compute-sanitizer": '[ "$2" != "$BROKEN" ]',
        "python": 'echo "$@"; [[ "$*" != *"$BROKEN"* ]]',
    }
    for program, body in programs.items():
        (tmp_path / program).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / program).chmod(0o755)
    logs = machine.ROOT / "build" / "gpu" / name.lower().replace(" ", "-")
    yield {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "BROKEN": "nothing",
    }
    for path in logs.glob("*"):
        path.unlink()
    if logs.exists():
        logs.rmdir()


def test_gpu_script_plans_every_part_without_a_gpu():
    parts = gpu_script("--list").stdout.split()
    plan = gpu_script("--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert [line.split()[0] for line in plan.stdout.splitlines() if line[0] != " "] == parts
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"--tool {tool}" in plan.stdout
    for script in sorted((machine.ROOT / "bench").glob("bench_*.py")):
        assert f"bench.{script.stem} " in plan.stdout


def test_gpu_script_refuses_unknown_parts_and_options():
    assert gpu_script("profile").returncode == 2
    assert gpu_script("--fast").returncode == 2


def test_gpu_script_without_a_gpu_says_so():
    bare = {"PATH": "/usr/bin:/bin"}
    if Path("/usr/bin/nvidia-smi").exists():
        pytest.skip("this machine has a GPU")
    done = gpu_script("build", **bare)
    assert done.returncode == 3
    assert "no NVIDIA GPU was found" in done.stderr


def test_gpu_script_runs_every_part_once_and_resumes(fake_gpu):
    first = gpu_script(**fake_gpu)
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("ended well") == len(gpu_script("--list").stdout.split())
    second = gpu_script(**fake_gpu)
    assert "ended well" not in second.stdout
    assert "models: done before" in second.stdout
    assert "models: ended well" in gpu_script("models", "--force", **fake_gpu).stdout


@pytest.mark.parametrize(("broken", "part"), [("racecheck", "sanitizers"), ("graphs", "graphs")])
def test_gpu_script_reports_the_part_that_failed_and_goes_on(fake_gpu, broken, part):
    done = gpu_script("sanitizers", "graphs", "models", **fake_gpu | {"BROKEN": broken})
    assert done.returncode == 1
    assert done.stderr.strip() == f"failed: {part}"
    assert "models: ended well" in done.stdout


def test_published_numbers_are_those_of_the_result_files():
    text = readme.README.read_text()
    assert readme.rewritten(text) == text, "run `python -m bench.readme`"
    assert readme.tables() == readme.TABLES.read_text(), "run `python -m bench.readme`"


class Paced:
    """A contestant whose calls take the next of the given times."""

    def __init__(self, name: str, *seconds: float) -> None:
        self.name, self._seconds = name, itertools.cycle(seconds)

    def prepare(self, case: str, dtype: str) -> None:
        self.prepared = case, dtype

    def round(self, clock: Clock) -> dict[str, Sample]:
        return dict.fromkeys(("forward", "backward"), Sample(next(self._seconds), 0))


def test_time_without_a_stage_is_compared_with_the_whole_of_the_same_round():
    # The machine slows down by ten in every second round: ratios do not see it.
    whole, variant = Paced(stages.WHOLE, 4e-3, 4e-2), Paced("packing", 3e-3, 3e-2)
    rows = stages.measure([whole, variant], "a case", "float32", budget_s=0)
    assert whole.prepared == variant.prepared == ("a case", "float32")
    assert [row.phase for row in rows] == ["forward", "backward"]
    assert rows[0].rounds == stages.ROUNDS[0]
    assert rows[0].ratios == {"packing": pytest.approx((0.75, 0.75, 0.75))}


@pytest.mark.parametrize(
    ("quartiles", "control", "text"),
    [
        ((0.70, 0.75, 0.80), 1.01, "25 % (20 to 30)"),
        ((0.60, 0.75, 0.90), 1.01, "unclear"),  # rounds differ by more than the stage saves
        ((0.94, 0.95, 0.96), 1.06, "unclear"),  # and so do two processes with the same kernel
        ((1.09, 1.10, 1.11), 0.98, "-10 % (-11 to -9)"),
    ],
)
def test_a_figure_within_the_noise_is_not_printed(quartiles, control, text):
    ratios = {"packing": quartiles, stages.CONTROL: (control, control, control)}
    assert stages.figures(ratios) == {"packing": text}


def test_a_library_at_work_times_a_case_until_the_connection_closes():
    ours, theirs = multiprocessing.Pipe()
    arguments = (theirs, "atrous_attention", _native.cpu_isa())
    worker = threading.Thread(target=stages.serve, args=arguments)
    worker.start()
    remote = stages.Remote(stages.WHOLE, ours)
    remote.prepare("stage 3, 224", "bfloat16")
    times = remote.round(Clock())
    ours.close()
    worker.join()
    assert times.keys() == {"forward", "backward"}
    assert all(sample.seconds > 0 for sample in times.values())


def test_processes_inherit_settings_that_do_not_outlast_them(monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_LIBRARY", "ours")
    before = dict(os.environ)
    with stages.environment(stages.WORKER_SETTINGS | {"HYBRID_KERNELS_LIBRARY": "theirs"}):
        assert os.environ["HYBRID_KERNELS_LIBRARY"] == "theirs"
        assert os.environ["MALLOC_MMAP_MAX_"] == "0"
    assert dict(os.environ) == before


CHECK_VARIANT = """
import torch
import hybrid_kernels as hk

qkv = torch.randn(1, 7, 7, 1, 3, 1, 8)
out = hk.atrous_attention(qkv, None, [1])
with hk.use_backend("reference"):
    print("wrong" if (out - hk.atrous_attention(qkv, None, [1])).abs().max() > 0.1 else "right")
"""


@pytest.mark.parametrize(("stage", "verdict"), [("exponentials", "wrong"), ("prefetch", "right")])
def test_variant_of_a_kernel_lacks_its_stage(stage, verdict):
    if not list(stages.BUILD_DIR.glob("atrous_attention/*.baseline.o")):
        pytest.skip("no objects of an in-place build to vary")
    library = stages.build_variant("atrous_attention", stage, "baseline", ["float32"])
    settings = {"HYBRID_KERNELS_LIBRARY": str(library), "HYBRID_KERNELS_CPU_ISA": "baseline"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_VARIANT],
        capture_output=True,
        text=True,
        cwd=machine.ROOT,
        env=os.environ | settings,
    )
    assert done.stdout.strip() == verdict, done.stderr
