"""Building and installing: the wheel, its use from elsewhere, and what stops a build that cannot
work."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
SECONDS_TO_REFUSE = 30  # of a loaded machine; 3 on a quiet one


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run without what the surrounding suite may have put into the environment."""
    hidden = {"HYBRID_KERNELS_LIBRARY", "HYBRID_KERNELS_BACKEND", "LD_PRELOAD", "PYTHONPATH"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd="/",
        env=inherited | environment,
    )


def pip(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pip. Builds of this tree take turns: setuptools clears and fills one folder of it."""
    quiet = ["--disable-pip-version-check", "--no-input"]
    lock_file = ROOT / "build" / ".packaging"
    lock_file.parent.mkdir(exist_ok=True)
    with open(lock_file, "w") as lock:
        if ROOT in arguments:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return run(sys.executable, "-m", "pip", *quiet, *arguments, **environment)


def text(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


def build_module():
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "csrc" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    result = pip("wheel", *options, ROOT)
    assert result.returncode == 0, text(result)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def new_environment(folder: Path) -> Path:
    """An empty virtual environment; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def site_packages_of(python: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return python.parent.parent / "lib" / version / "site-packages"


def test_wheel_serves_every_python_of_the_platform(wheel: Path):
    platform = re.escape(sysconfig.get_platform().replace("-", "_").replace(".", "_"))
    assert re.fullmatch(rf"hybrid_kernels-[0-9.]+-py3-none-{platform}\.whl", wheel.name)


def test_wheel_holds_every_module_and_launch_setting_of_both_packages(names: set[str]):
    sources = [*ROOT.glob("hybrid_kernels/**/*.py"), *ROOT.glob("python_ref/**/*.py")]
    sources += ROOT.glob("hybrid_kernels/configs/*.json")
    wanted = {str(source.relative_to(ROOT)) for source in sources}
    assert wanted <= names
    assert "hybrid_kernels/_C.so" in names


def test_wheel_holds_nothing_else(names: set[str]):
    others = {n for n in names if not re.match(r"(hybrid_kernels|python_ref)/.*\.(py|json|so)$", n)}
    assert all(".dist-info/" in name for name in others), others
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in others)


def test_library_needs_only_the_stable_abi(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extract("hybrid_kernels/_C.so", tmp_path)
    undefined = run("nm", "-D", "--undefined-only", tmp_path / "hybrid_kernels" / "_C.so").stdout
    symbols = [line.split()[-1] for line in undefined.splitlines()]
    assert symbols
    python = [s for s in symbols if s.startswith(("Py", "_Py"))]
    unstable = [s for s in symbols if re.match(r"_Z(N[KVRO]*|T[IV]N?)?(2at|3c10|5torch)", s)]
    assert not python
    assert not unstable


def test_code_of_one_instruction_set_is_never_shared_with_another(wheel: Path):
    # The linker keeps one copy of a weak function (an inline one of a header), and that may be the
    # copy with AVX-512 in it, also for the callers on a machine without.
    objects = [
        p for p in (ROOT / "build" / "native").glob("*/*_cpu*.o") if ".baseline" not in p.name
    ]
    if sysconfig.get_platform().endswith("x86_64"):
        assert objects
    for path in objects:
        weak = [s for s in run("nm", "-C", path).stdout.splitlines() if re.match(r"\S* +[VWu] ", s)]
        assert not weak, f"{path.name}: {weak}"


USE = """
import pathlib, sys
import torch
import hybrid_kernels, python_ref

inside = pathlib.Path(sys.prefix)
assert inside in pathlib.Path(hybrid_kernels.__file__).parents, hybrid_kernels.__file__
assert inside in pathlib.Path(python_ref.__file__).parents, python_ref.__file__
from python_ref.ops import atrous_attention
qkv = torch.randn(1, 9, 10, 2, 3, 2, 8, dtype=torch.float64)
ours, _ = torch.ops.hybrid.atrous_attention(qkv, None, [1, 2], 3, 0.3)
theirs, _ = atrous_attention(qkv, None, [1, 2], 3, 0.3)
torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
"""


def test_installed_wheel_computes_from_another_folder(wheel: Path, tmp_path: Path):
    python = new_environment(tmp_path / "venv")
    result = pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    assert result.returncode == 0, text(result)
    # torch and the other dependencies come from here; the package itself cannot: a path file in a
    # folder that is itself named by a path file is not followed, so no editable install counts.
    (site_packages_of(python) / "dependencies.pth").write_text(f"{SITE_PACKAGES}\n")
    result = run(python, "-c", USE)
    assert result.returncode == 0, text(result)
    result = run(python.parent / "hybrid-kernels", "--help")
    assert result.returncode == 0, text(result)
    assert "check" in result.stdout


def refusal(python: Path | str, **environment: str) -> str:
    """Output of a pip install that must fail soon."""
    begin = time.perf_counter()
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    result = pip("--python", python, "install", *options, ROOT, **environment)
    assert result.returncode != 0, text(result)
    assert time.perf_counter() - begin < SECONDS_TO_REFUSE
    return text(result)


def test_build_without_torch_says_how_to_get_it(tmp_path: Path):
    python = new_environment(tmp_path / "venv")
    for tool in ("setuptools", "_distutils_hack", "ninja"):  # build-system.requires, no torch
        (site_packages_of(python) / tool).symlink_to(SITE_PACKAGES / tool)
    output = refusal(python)
    assert "hybrid_kernels is built against torch >= 2.10" in output
    assert "pip install 'torch>=2.10'" in output


def test_build_requirements_do_not_include_torch():
    # pip would fetch a second torch, of several GB, for the build alone.
    requires = re.search(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert "setuptools" in requires
    assert "torch" not in requires


def test_build_without_a_compiler_says_which_one_is_needed(tmp_path: Path):
    python = new_environment(tmp_path / "venv")
    (site_packages_of(python) / "dependencies.pth").write_text(f"{SITE_PACKAGES}\n")
    output = refusal(python, CXX="/nonexistent/g++")
    assert "'/nonexistent/g++' does not run" in output
    assert "needs a C++17 compiler (g++ >= 10 or clang++ >= 10)" in output


def test_cuda_asked_for_without_nvcc_is_refused(monkeypatch: pytest.MonkeyPatch):
    build = build_module()
    monkeypatch.setenv("HYBRID_CUDA", "1")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.BuildError, match=r"HYBRID_CUDA=1, but no nvcc .* CUDA_HOME"):
        build.find_cuda()


@pytest.mark.parametrize(
    ("capabilities", "archs"),
    [
        ("9.0\n9.0\n", ["90"]),
        ("9.0\n8.6\n", ["86", "90"]),
        ("7.5\n", ["80", "90"]),
        ("99.0\n", ["80", "90"]),
        ("NVIDIA-SMI has failed because it could not communicate with the driver", ["80", "90"]),
    ],
    ids=["alike", "different", "too old", "unknown", "no driver"],
)
def test_native_archs_are_those_of_the_gpus(monkeypatch, capabilities: str, archs: list[str]):
    build = build_module()
    monkeypatch.setenv("HYBRID_CUDA_ARCHS", "native")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    answers = {"nvcc": "sm_75\nsm_80\nsm_86\nsm_90\n", "nvidia-smi": capabilities}
    monkeypatch.setattr(build, "_output", lambda command: answers[command[0]])
    assert build._cuda_archs("nvcc") == archs


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HYBRID_CUDA", "yes", "HYBRID_CUDA=yes: expected auto, 0 or 1"),
        ("HYBRID_CPU_ISAS", "mmx", "HYBRID_CPU_ISAS=mmx: {'mmx'} unknown; expected some of"),
        ("HYBRID_TORCH_DIR", "/nonexistent", "HYBRID_TORCH_DIR=/nonexistent is not a torch"),
    ],
)
def test_bad_build_setting_is_named(variable: str, value: str, message: str):
    result = run(sys.executable, ROOT / "csrc" / "build.py", **{variable: value})
    assert result.returncode == 1
    assert message in result.stderr


def test_native_is_the_set_that_the_library_chooses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    import instruction_sets

    code = "from hybrid_kernels import _native; print(_native.cpu_isa())"
    result = run(sys.executable, "-c", code, PYTHONPATH=ROOT, HYBRID_KERNELS_CPU_ISA="")
    assert result.stdout.strip() == instruction_sets.native_isa()


def precompiled_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    import precompiled

    return precompiled


def test_headers_are_not_precompiled_for_ccache(monkeypatch, tmp_path: Path):
    precompiled = precompiled_module(monkeypatch)
    ccache, link = tmp_path / "ccache", tmp_path / "g++"
    ccache.write_text('#!/bin/sh\nexec g++ "$@"\n')
    ccache.chmod(0o755)
    link.symlink_to(ccache)
    assert not precompiled.is_helpful(f"{ccache} g++")
    assert not precompiled.is_helpful(str(link))


def test_precompiled_header_is_taken_with_its_flags_and_no_others(monkeypatch, tmp_path: Path):
    precompiled = precompiled_module(monkeypatch)
    if shutil.which("g++") is None or not precompiled.is_helpful("g++"):
        pytest.skip("no plain g++ here")
    from ninja import ninja_syntax

    (tmp_path / "a.cpp").write_text("std::string a;\n")
    with open(tmp_path / "build.ninja", "w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.rule("cpu", "g++ -Winvalid-pch -Werror $isa_flags $more $header -c $in -o $out")
        headers = precompiled.Headers(ninja, tmp_path, "g++")
        for name, more in (("same.o", "-DHYBRID_ISA=any"), ("other.o", "-std=c++20")):
            found = headers.include("std", ("string",), "cpu", {"isa_flags": "-O2"})
            header = found.pop("implicit")
            variables = found | {"isa_flags": "-O2", "more": more}
            ninja.build(name, "cpu", "a.cpp", implicit=header, variables=variables)
    build = [sys.executable, "-m", "ninja", "-C", tmp_path]
    assert run(*build, "same.o").returncode == 0
    assert "invalid-pch" in run(*build, "other.o").stdout.partition("error: ")[2]


def test_second_build_has_nothing_to_do(wheel: Path):
    for _ in range(2):
        result = run(sys.executable, ROOT / "csrc" / "build.py")
        assert result.returncode == 0, text(result)
    assert "no work to do" in result.stdout


def test_missing_library_is_an_import_error_that_says_how_to_build_it():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hybrid_kernels"
    result = run(sys.executable, "-c", code, HYBRID_KERNELS_LIBRARY="/nonexistent/_C.so")
    assert result.returncode == 1
    assert "ImportError: hybrid_kernels has no compiled library: /nonexistent" in result.stderr
    assert "python csrc/build.py" in result.stderr
