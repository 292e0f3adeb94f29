# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and make.
# Newest versions are installed; LOCKED=1 takes those of the lock file, LOWEST=1 the oldest that
# pyproject.toml allows. Each has an environment of its own.
COMMA := ,
VENV ?= .venv$(if $(LOCKED),-locked)$(if $(LOWEST),-lowest)
EXTRAS ?= all,dev$(if $(LOWEST),,$(COMMA)docs$(COMMA)supply$(COMMA)tensorboard)
ARGS ?=
LOCK := requirements/demo.txt
BIN = $(VENV)/bin
STAMP = $(VENV)/.detofa-installed
PIP = "$(BIN)/python" -m pip install --quiet --disable-pip-version-check

.PHONY: help install demo test test-slow test-docs test-lowest check lint types format clean
.PHONY: lock audit licences sbom bench docs reference wheel
.DEFAULT_GOAL := help

help:
	@echo "make demo       train, profile, search, export and verify a small detector"
	@echo "make test       run the tests (make test-slow: the long ones)"
	@echo "make test-docs  run every command of README and docs that is not marked as longer still"
	@echo "make check      lint, types and tests; make format mends what lint finds"
	@echo "make demo LOCKED=1   the same with the exact versions of $(LOCK)"
	@echo "make test-lowest     the tests with the oldest versions that pyproject.toml allows"
	@echo "make bench      speed beside once-for-all's own code; for all of it"
	@echo "                ARGS=\"--data BCCD --run RUN --table TABLE\""
	@echo "make lock       write $(LOCK): the versions installed in $(VENV)"
	@echo "make audit, licences, sbom   what is known of these: faults, licences, a CycloneDX file"
	@echo "make docs       build the documentation into build/site; make reference writes what"
	@echo "                docs/reference has of commands and files, from the code"
	@echo "make wheel      build the wheel into dist, and have twine and check-wheel-contents look at it"
	@echo "make clean      remove caches and builds (runs and the environment stay)"
	@echo "VENV=$(VENV)  PYTHON=an interpreter of your choice  ARGS=\"more arguments\""

install: $(STAMP)

# Installed again whenever pyproject.toml changes. PYTHON chooses the interpreter; otherwise the
# first one found that is new enough.
$(STAMP): pyproject.toml $(if $(LOCKED),$(LOCK)) $(if $(LOWEST),tools/lowest.py)
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || { \
	  for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "making $(VENV) with $$python"; \
	    exec "$$python" -m venv "$(VENV)"; \
	  done; \
	  echo "detofa needs Python 3.11 or newer: none found; set PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
ifdef LOCKED
	$(PIP) --require-hashes -r $(LOCK)
	$(PIP) --no-deps -e .
else ifdef LOWEST
	$(PIP) packaging
	"$(BIN)/python" -m tools.lowest >"$(VENV)/lowest.txt"
	$(PIP) -c "$(VENV)/lowest.txt" -e '.[$(EXTRAS)]'
else
	$(PIP) -e '.[$(EXTRAS)]'
endif
	@touch "$@"

demo: $(STAMP)
	"$(BIN)/detofa" demo $(ARGS)

test: $(STAMP)
	"$(BIN)/python" -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP)
	"$(BIN)/python" -m pytest -m "slow and not long" $(ARGS)

test-docs: $(STAMP)
	"$(BIN)/python" -m pytest -m long $(ARGS)

test-lowest:
	$(MAKE) test LOWEST=1

bench: $(STAMP)
	"$(BIN)/python" -m benchmarks.speed $(ARGS)

# The versions that the tests ran with, and the hashes of all their files; no index is named.
lock: $(STAMP)
	"$(BIN)/python" -m pip freeze --exclude-editable >"$(VENV)/tested.txt"
	"$(BIN)/python" -m tools.declared demo | CUSTOM_COMPILE_COMMAND="make lock" \
	  "$(BIN)/python" -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	  --no-annotate --no-emit-options --no-emit-index-url --no-emit-find-links \
	  --no-emit-trusted-host -c "$(VENV)/tested.txt" -o $(LOCK) -

# Exit code 75: the service did not answer, and CI may skip it. See tools/audit.py.
audit: $(STAMP)
	@"$(BIN)/python" -m tools.audit

licences: $(STAMP)
	"$(BIN)/python" -m tools.licences

sbom: $(STAMP)
	@mkdir -p build
	"$(BIN)/python" -m cyclonedx_py requirements --output-reproducible -o build/sbom.json $(LOCK)

# Any warning, such as of a link to nowhere, stops it.
docs: $(STAMP)
	"$(BIN)/python" -m mkdocs build --quiet --strict

reference: $(STAMP)
	"$(BIN)/python" -m tools.reference

wheel: $(STAMP)
	rm -rf dist
	"$(BIN)/python" -m pip wheel --quiet --no-deps --wheel-dir dist .
	"$(BIN)/python" -m twine check --strict dist/*.whl
	"$(BIN)/python" -m check_wheel_contents dist/*.whl

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
