# Needs Python >= 3.10 and a C++17 compiler, nothing else. nvcc, where there is one, adds the CUDA
# kernels. Everything is installed into .venv; a second run of any target starts at once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# With an NVIDIA GPU and a torch beside $(PYTHON), that torch is used; with a GPU alone, pip's
# newest; without one, the pinned pair.
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo 1)
ifdef GPU
OWN_TORCH := $(shell $(PYTHON) -c "import torch; torch.version.cuda and print(1)" 2>/dev/null)
VENV_OPTIONS := $(if $(OWN_TORCH),--system-site-packages)
else
CONSTRAINTS := -c constraints.txt
endif

ROOMS = $(wildcard csrc hybrid_kernels python_ref tests bench)
CXX_SOURCES = $(shell find $(ROOMS) -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SOURCES = $(CXX_SOURCES) setup.py .ci/run $(shell find $(ROOMS) -name '*.py' -o -name '*.sh')

.PHONY: help build demo test bench wheel lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a photograph through each paper's model: reference against fused, pictures"
	@echo "make test    every suite: CPU, Triton's interpreter, CUDA on the host emulator, packaging"
	@echo "make bench   hybrid-kernels bench: every op against its baselines and the roofline"
	@echo "make build   the native library, in place; only what changed"
	@echo "make wheel   dist/*.whl"
	@echo "make lint    formatting, common mistakes, file lengths"
	@echo "make clean   remove what was built; $(VENV) stays"

# Stamps: what is installed in the virtual environment.

$(VENV)/.created:
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(v < (3, 10) and f'error: {sys.executable} is Python {v[0]}.{v[1]}; 3.10 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	@touch $@

# torch first and alone: the package is built against it, without isolation, so that `make build`
# later continues the same build.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) "torch>=2.10" "setuptools>=77" "ninja>=1.11.1"
	$(PIP) install $(CONSTRAINTS) --no-build-isolation -e ".[demo]"
	@touch $@

$(VENV)/.lint: $(VENV)/.created pyproject.toml
	$(PIP) install "ruff>=0.9" "clang-format>=19"
	@touch $@

$(VENV)/.bench $(VENV)/.test: $(VENV)/.%: $(VENV)/.installed
	$(PIP) install $(CONSTRAINTS) --no-build-isolation -e ".[$*]"
	@touch $@

$(VENV)/.triton: $(VENV)/.installed
	$(PIP) install $(CONSTRAINTS) "triton>=3.6"
	@touch $@

# torchvision comes in one version for each torch. Without the constraint, pip would take its newest
# and replace torch.
$(VENV)/.compare: $(VENV)/.installed
	@$(BIN)/python -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" > $@.torch
	$(PIP) install $(CONSTRAINTS) -c $@.torch --no-build-isolation -e ".[compare]" \
	  || echo "pip has no torchvision for this torch: comparisons with other code will be skipped"
	@touch $@

# Without a CUDA toolkit, nvcc of pip: the tests compile the CUDA kernels and run them emulated.
$(VENV)/.nvcc: $(VENV)/.installed
	@cd csrc && ../$(BIN)/python -c "import build, sys; sys.exit(build.find_cuda() is None)" \
	  || $(PIP) install --no-build-isolation -e ".[nvcc]" \
	  || { echo "pip has no nvcc for this machine: the CUDA tests will be skipped"; exit 0; }
	@touch $@

build: $(VENV)/.installed
	@$(BIN)/python csrc/build.py

# A demonstration needs what this machine can run: its instruction set, and CUDA code only for a GPU
# that is there. The tests, `make build`, `make wheel` and `pip install` build everything.
demo: export HYBRID_CPU_ISAS ?= native
demo: export HYBRID_CUDA ?= $(if $(GPU),auto,0)
demo: export HYBRID_CUDA_ARCHS ?= native
demo: build
	$(BIN)/hybrid-kernels demo

test: $(VENV)/.test $(VENV)/.compare $(VENV)/.triton $(VENV)/.nvcc build
	$(BIN)/python tests/run_all.py

bench: $(VENV)/.bench build
	$(BIN)/hybrid-kernels bench

wheel: $(VENV)/.installed
	rm -rf dist
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	@awk 'FNR > 400 { long[FILENAME] = FNR } \
	  length > 100 { print FILENAME ":" FNR ": " length " columns; at most 100"; bad = 1 } \
	  END { for (f in long) { print f ": " long[f] " lines; at most 400"; bad = 1 } exit bad }' \
	  $(SOURCES)

clean:
	rm -rf build dist *.egg-info hybrid_kernels/_C.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
