#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in parts that can be resumed.
# Needs a GPU, nvcc, and a Python with torch and the packages of the extras "test" and "bench".
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: bench/gpu.sh [--dry-run] [--force] [--list] [PART...]

Runs the parts named, or all of them in order. A part that ended well leaves a stamp and is skipped
until --force is given, or the sources change; every part leaves its log. Both lie in
build/gpu/<name of the GPU>/, results in bench/results/<name of the GPU>/.

  build       the native library, with the CUDA kernels
  check       hybrid-kernels check: every op on every backend of this machine
  wrappers    every PTX wrapper on the GPU against its emulation on the CPU
  cuda        the test suite of the ops on the GPU, on the CUDA kernels
  triton      the same on the Triton kernels
  sanitizers  memcheck, racecheck, initcheck and synccheck on small samples, side by side
  graphs      CUDA-graph capture and replay of every op, on both backends
  ops         ops against eager, compile, SDPA and FlexAttention; eager launch and CUDA graph
  models      whole models against eager and compile

  --dry-run   print the commands instead of running them
  --force     run parts again that have a stamp
  --list      print the names of the parts

PYTHON names the interpreter; default is .venv/bin/python where it is, else python3.
Exit codes: 0 all parts ended well, 1 one did not, 2 the command line is wrong, 3 no GPU or no nvcc.
TEXT
}

PARTS=(build check wrappers cuda triton sanitizers graphs ops models)
SANITIZERS=(memcheck racecheck initcheck synccheck)
# Seconds after which a part is stopped: several times what it should take.
declare -A LIMIT=([build]=120 [check]=90 [wrappers]=60 [cuda]=150 [triton]=150 [sanitizers]=150
  [graphs]=60 [ops]=300 [models]=180)

dry_run=0
force=0
chosen=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=1 ;;
    --force) force=1 ;;
    --list) printf '%s\n' "${PARTS[@]}" && exit 0 ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *)
      if [[ ! " ${PARTS[*]} " == *" $argument "* ]]; then
        echo "gpu.sh: there is no part '$argument'; choose from ${PARTS[*]}" >&2
        exit 2
      fi
      chosen+=("$argument")
      ;;
  esac
done
[[ ${#chosen[@]} -gt 0 ]] || chosen=("${PARTS[@]}")

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi

# Prints a command in a dry run, and runs it otherwise.
run() {
  if ((dry_run)); then
    printf '  %s\n' "$*"
  else
    "$@"
  fi
}

# The files whose tests take their device and backend from the environment.
suites() {
  grep -l OpSuite tests/test_*.py
}

part_build() {
  run env HYBRID_CUDA=1 "$PYTHON" csrc/build.py
}

part_check() {
  run "$PYTHON" -m hybrid_kernels check
}

part_wrappers() {
  run "$PYTHON" tests/host_cuda/compare_wrappers.py
}

suite_on() {
  local files
  mapfile -t files < <(suites)
  run env HYBRID_TEST_DEVICE=cuda HYBRID_KERNELS_BACKEND="$1" \
    "$PYTHON" -m pytest -q -n 4 "${files[@]}"
}

part_cuda() {
  suite_on cuda
}

part_triton() {
  suite_on triton
}

# Every tensor is an allocation of its own, so that a stray access leaves it.
sanitize() {
  run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 HYBRID_KERNELS_BACKEND=cuda \
    compute-sanitizer --tool "$1" --error-exitcode 1 --target-processes all \
    "$PYTHON" -m bench.gpu_checks kernels
}

part_sanitizers() {
  local tool status=0
  local -A process
  for tool in "${SANITIZERS[@]}"; do
    if ((dry_run)); then
      sanitize "$tool"
    else
      sanitize "$tool" >"$logs/$tool.log" 2>&1 &
      process[$tool]=$!
    fi
  done
  for tool in "${!process[@]}"; do
    if wait "${process[$tool]}"; then
      echo "$tool: no report"
    else
      echo "$tool: see $logs/$tool.log"
      tail -n 20 "$logs/$tool.log"
      status=1
    fi
  done
  return "$status"
}

part_graphs() {
  local backend
  for backend in cuda triton; do
    run env HYBRID_KERNELS_BACKEND="$backend" "$PYTHON" -m bench.gpu_checks graphs
  done
}

part_ops() {
  local script
  for script in bench/bench_*.py; do
    [[ "$script" == bench/bench_models.py ]] ||
      run "$PYTHON" -m "bench.$(basename "$script" .py)" --device cuda --graphs
  done
}

part_models() {
  run "$PYTHON" -m bench.bench_models --device cuda --compile
}

# A part runs in a shell of its own, which `timeout` can stop with all that it started.
if [[ -n "${HYBRID_GPU_PART:-}" ]]; then
  logs=$HYBRID_GPU_LOGS
  "part_$HYBRID_GPU_PART"
  exit
fi

if ((dry_run)); then
  for part in "${chosen[@]}"; do
    echo "$part (at most ${LIMIT[$part]} s)"
    "part_$part"
  done
  exit 0
fi

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L | grep -q GPU; then
  echo "gpu.sh: no NVIDIA GPU was found (nvidia-smi); --dry-run shows what would run" >&2
  exit 3
fi
if ! command -v nvcc >/dev/null && [[ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]]; then
  echo "gpu.sh: no nvcc was found; install the CUDA toolkit and set CUDA_HOME to it" >&2
  exit 3
fi
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
logs=build/gpu/$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu")
mkdir -p "$logs"
# A stamp holds for the sources that it was made with.
sources=$(find csrc hybrid_kernels python_ref tests bench \
  -name '*.py' -o -name '*.h' -o -name '*.cu*' -o -name '*.cpp' |
  sort | xargs sha256sum | sha256sum | cut -c1-16)

failed=()
for part in "${chosen[@]}"; do
  stamp=$logs/$part.done
  if ((!force)) && [[ -e "$stamp" && "$(cat "$stamp")" == "$sources" ]]; then
    echo "$part: done before"
    continue
  fi
  begin=$SECONDS
  echo "$part: running, log in $logs/$part.log"
  if HYBRID_GPU_PART=$part HYBRID_GPU_LOGS=$logs timeout --kill-after=10 "${LIMIT[$part]}" \
    bash bench/gpu.sh >"$logs/$part.log" 2>&1; then
    echo "$sources" >"$stamp"
    echo "$part: ended well in $((SECONDS - begin)) s"
    tail -n 3 "$logs/$part.log"
  else
    echo "$part: FAILED after $((SECONDS - begin)) s, of at most ${LIMIT[$part]}"
    tail -n 20 "$logs/$part.log"
    failed+=("$part")
    [[ "$part" != build ]] || break
  fi
done

if [[ ${#failed[@]} -gt 0 ]]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
