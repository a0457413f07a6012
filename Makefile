# The README's commands. Everything happens in .venv; `make setup` makes it.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := . plugins/apr_qwen2 plugins/apr_qwen3_5 plugins/apr_quant_q4k plugins/apr_backend_cpu plugins/apr_export_gguf plugins/apr_demo
# needs torch, so it comes with what the tests need; there its kernels are interpreted
CUDA := plugins/apr_backend_cuda
EDITABLE := $(foreach p,$(PACKAGES),-e $(p))
RUNTIME := .venv/.runtime
TESTING := .venv/.testing
WORKERS ?= 2  # processes that run tests; a file's tests stay together
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all lint types bench docs clean help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(TESTING)  ## everything into .venv, pinned

$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip

$(RUNTIME): requirements/runtime.txt pyproject.toml $(wildcard plugins/*/pyproject.toml) | $(BIN)/python
	$(BIN)/python -m pip install -q -r requirements/runtime.txt
	$(BIN)/python -m pip install -q $(EDITABLE)
	touch $@

$(TESTING): requirements/test.txt $(CUDA)/pyproject.toml $(RUNTIME)
	$(BIN)/python -m pip install -q -r requirements/test.txt
	$(BIN)/python -m pip install -q -e $(CUDA)
	touch $@

demo: $(RUNTIME)  ## the main job, end to end, on the bundled model
	$(BIN)/apr demo

test: $(TESTING)  ## the tests; Triton's kernels are interpreted, in a process of their own
	$(BIN)/python -m pytest $(PARALLEL)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(CUDA)

lint: $(TESTING)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TESTING)  ## mypy, strict on apr_core
	$(BIN)/mypy

bench: $(TESTING)  ## figures for docs/: quality of the demo model, quantization error, start-up
	$(BIN)/python benchmarks/demo_quality.py
	$(BIN)/python benchmarks/quantization_error.py
	$(BIN)/python -m benchmarks.cli_start

docs: $(TESTING)  ## reference pages from the code
	$(BIN)/python docs/generate.py

clean:           ## remove .venv and caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis
