"""The command line: exit codes, messages on stderr, and what scripts read."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from hybrid_kernels import _native, backends, checking, cli, multiscale_fits_cache

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def assert_problem(result: Result, exit_code: int, message: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert message not in result.stdout
    assert isinstance(result.exception, SystemExit), "a traceback for an error of the user's"


def test_info_as_json_names_a_backend_for_every_op_and_device():
    result = invoke("info", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["cpu"]["isa_in_use"] in facts["cpu"]["isas_available"]
    assert {line["op"] for line in facts["ops"]} == set(backends.op_names())
    assert all(line["reason"] for line in facts["ops"])


def test_info_as_tables_shows_versions_and_ops():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    for text in (torch.__version__, "instruction set", "atrous_attention_backward"):
        assert text in result.stdout


def test_info_tells_the_cheaper_form_of_single_query_attention():
    forms = json.loads(invoke("info", "--json").stdout)["single_query_forms"]
    for form in forms:
        G, h, C = form["queries"], form["heads"], form["channels"]
        assert form["absorbed_cost"] == h * G * C * 2  # scores and means over C channels
        assert form["projected_cost"] == 2 * C * C + 2 * C * G  # two projections, then attention
        assert form["is_absorbed"] == (form["absorbed_cost"] <= form["projected_cost"])
        assert form["is_kernel"] == (not form["is_absorbed"] or C <= 128)
    assert {form["is_absorbed"] for form in forms} == {True, False}
    assert "2 C G <= (C + G)(d + dv)" in " ".join(invoke("info").stdout.split())


@pytest.mark.skipif(_native.build_info()["emulator"] is not None, reason="no CPU kernels")
def test_info_tells_the_regime_of_multiscale_attention():
    regimes = json.loads(invoke("info", "--json").stdout)["multiscale_regimes"]
    for regime in regimes:
        fits = multiscale_fits_cache(regime["queries"], regime["keys"])
        assert regime["fits_cache"] is fits
    assert {regime["fits_cache"] for regime in regimes} == {True, False}
    assert "in the cache" in invoke("info").stdout


@pytest.mark.skipif(_native.build_info()["emulator"] is not None, reason="no CPU kernels")
def test_a_head_that_fits_the_cache_still_does_when_it_shrinks():
    fits = [[multiscale_fits_cache(n, m) for m in (1, 80, 500, 4000)] for n in (1, 96, 500, 4000)]
    for rows in (fits, list(zip(*fits, strict=True))):
        assert all(a >= b for row in rows for a, b in itertools.pairwise(row))
    assert fits[0][0] and not fits[-1][-1]
    with pytest.raises(ValueError, match="keys = 0"):
        multiscale_fits_cache(4, 0)


def test_info_says_which_ops_of_models_stay_reference():
    fused, reference = invoke("info").stdout.split("accelerate exchanges: ")[1].splitlines()[:2]
    assert "atrous_attention" in fused.split(", ")
    assert "grouped_pointwise" in reference.removeprefix("not fused yet, reference: ").split(", ")


def test_every_command_documents_its_exit_codes():
    for command in ("info", "check", "bench", "count", "tune", "demo"):
        assert "Exit codes:" in invoke(command, "--help").stdout


def test_unknown_command_is_a_usage_error():
    assert_problem(invoke("profile"), 2, "No such command 'profile'")


def test_count_shows_modules_and_the_papers_figures():
    result = invoke("count", "accvit_tiny", "--convention", "paper")
    assert result.exit_code == 0, result.output
    for text in ("28,367,252", "5,694,075,392", "Table 2", "28.367", "stages.3"):
        assert text in result.stdout


def test_count_takes_sizes_and_options():
    result = invoke("count", "accvit_femto", "--size", "64x96", "--option", "layers=(1, 1, 1, 1)")
    assert result.exit_code == 0, result.output
    assert "published" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a model"),
        (("accvit_tyny",), "did you mean accvit_tiny"),
        (("accvit_tiny", "--size", "2y"), "ROWSxCOLUMNS"),
        (("accvit_tiny", "--option", "gate"), "KEY=VALUE"),
        (("accvit_tiny", "--option", "gait=1"), "no option 'gait'"),
        (("accvit_tiny", "--size", "96", "--convention", "paper"), "no paper prints figures"),
    ],
)
def test_count_names_what_is_wrong(arguments, message):
    assert_problem(invoke("count", *arguments), 2, message)


def test_check_of_one_op_succeeds():
    result = invoke("check", "--quick", "--only", "atrous_attention", "--backend", "reference")
    assert result.exit_code == 0, result.output
    assert "atrous_attention" in result.stdout
    assert "failed" not in result.stdout


def test_check_leaves_backend_and_instruction_set_as_they_were():
    before = invoke("info", "--json").stdout
    invoke("check", "--quick", "--only", "atrous_partition")
    assert invoke("info", "--json").stdout == before


def test_check_fails_on_an_inaccurate_kernel(monkeypatch):
    honest = checking.run

    def wrong(op, *arguments, **options):
        result = honest(op, *arguments, **options)
        if isinstance(op, torch._ops.OpOverload):
            result.outputs[0] = result.outputs[0] + 1e-2
        return result

    monkeypatch.setattr(checking, "run", wrong)
    result = invoke("check", "--quick", "--only", "atrous_attention", "--backend", "reference")
    assert_problem(result, 1, "output 0 differs from float64 by 0.01")
    assert "failed" in result.stdout


def test_check_fails_on_a_kernel_that_raises(monkeypatch):
    def refuse(declaration):
        def op(*arguments):
            raise RuntimeError("out of paper")

        return op

    monkeypatch.setattr(checking, "fused", refuse)
    result = invoke("check", "--quick", "--only", "gated_fuse", "--backend", "reference")
    assert_problem(result, 1, "RuntimeError: out of paper")


def test_check_of_an_unknown_op_lists_the_ops():
    assert_problem(invoke("check", "--only", "attention"), 2, "atrous_attention, ")


def test_check_of_an_unknown_backend_lists_the_backends():
    assert_problem(invoke("check", "--backend", "opencl"), 2, "'triton'")


@NO_GPU
def test_check_of_a_backend_that_cannot_run_says_how_to_get_it():
    if backends.service("atrous_attention", "cpu").backend == "cuda":
        pytest.skip("the host emulator provides the CUDA backend")
    assert_problem(invoke("check", "--backend", "cuda"), 3, "backend 'cuda' cannot be used here")


@NO_GPU
def test_tune_without_a_gpu_says_so():
    assert_problem(invoke("tune"), 3, "torch sees none here")


def test_bench_without_a_checkout_says_where_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    assert_problem(invoke("bench", "atrous_attention"), 2, "Clone the repository")


def test_bench_of_an_unknown_name_lists_what_there_is():
    assert_problem(
        invoke("bench", "softmax"), 2, "there are abstract_token_attention, atrous_attention"
    )


def test_bench_hands_its_options_on_and_reports_a_failure(monkeypatch):
    seen = []

    def run(command, cwd):
        seen.append((command[1:], cwd))
        return subprocess.CompletedProcess(command, returncode=7)

    monkeypatch.setattr(subprocess, "run", run)
    result = invoke("bench", "gated_fuse", "--quick", "--isa", "avx2")
    assert_problem(result, 1, "the benchmark of gated_fuse stopped with status 7")
    assert seen == [(["-m", "bench.bench_gated_fuse", "--quick", "--isa", "avx2"], cli.CHECKOUT)]


def test_demo_without_matplotlib_names_what_to_install(monkeypatch):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda m: None if m == "matplotlib" else find(m)
    )
    assert_problem(invoke("demo"), 2, "pip install matplotlib")


def test_demo_of_an_unreadable_picture_is_a_usage_error(tmp_path):
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "photo.png"
    picture.write_text("no picture")
    assert_problem(invoke("demo", "--image", str(picture)), 2, "photo.png")


@pytest.mark.slow
def test_demo_of_a_small_picture_agrees_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    photo, output = tmp_path / "photo.png", tmp_path / "drawn"
    image.effect_noise((90, 70), 60).save(photo)
    arguments = ("--image", str(photo), "--output", str(output), "--place", "0.3", "0.6")
    result = invoke("demo", *arguments, "--models", "accvit_femto")
    assert result.exit_code == 0, result.output
    for text in ("accvit_femto, ACC-ViT", "1 x 3 x 224 x 224", "1 x 3 x 48 x 48"):
        assert text in result.stdout
    assert image.open(output / "accvit_femto.png").size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--place", "1", "0"), "--place"),
        (("--models", "accvit_tyny"), "did you mean accvit_tiny"),
        (("--models", "resnet18"), "resnet18 is none of the papers' models; take one like accvit"),
        (("--checkpoint", __file__), "name it with --models"),
    ],
)
def test_demo_names_what_is_wrong(arguments, message, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    assert_problem(invoke("demo", "--output", str(tmp_path), *arguments), 2, message)


def test_python_m_hybrid_kernels_is_the_command_line():
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "hybrid_kernels", "check", "--only", "nothing"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--only nothing" in done.stderr
    assert "Traceback" not in done.stderr
