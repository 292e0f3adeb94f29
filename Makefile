# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and make.
VENV ?= .venv
EXTRAS ?= all,dev
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.detofa-installed

.PHONY: help install demo test test-slow check lint types format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train, profile, search, export and verify a small detector"
	@echo "make test       run the tests (make test-slow: the long ones)"
	@echo "make check      lint, types and tests; make format mends what lint finds"
	@echo "make clean      remove caches and builds (runs and the environment stay)"
	@echo "VENV=$(VENV)  PYTHON=an interpreter of your choice  ARGS=\"more arguments\""

install: $(STAMP)

# Installed again whenever pyproject.toml changes. PYTHON chooses the interpreter; otherwise the
# first one found that is new enough.
$(STAMP): pyproject.toml
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || { \
	  for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "making $(VENV) with $$python"; \
	    exec "$$python" -m venv "$(VENV)"; \
	  done; \
	  echo "detofa needs Python 3.11 or newer: none found; set PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch "$@"

demo: $(STAMP)
	"$(BIN)/detofa" demo $(ARGS)

test: $(STAMP)
	"$(BIN)/python" -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP)
	"$(BIN)/python" -m pytest -m slow $(ARGS)

lint: $(STAMP)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: $(STAMP)
	"$(BIN)/mypy"

format: $(STAMP)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

check: lint types test

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find detofa tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
