# Everything this project does, each target with all its own set-up.
# A fresh machine needs Python 3.11 or newer (PYTHON=...), make and git.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1

BIN := .venv/bin

.PHONY: help install run test check lint format lowest bench bench-instructions bench-quick clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed-dev ## build the environment, with all that development needs

run: .venv/installed ## serve on http://HOST:PORT with WORKERS processes (127.0.0.1:8000, 1)
	$(BIN)/uvicorn app:app --host $(HOST) --port $(PORT) --workers $(WORKERS) \
	    --timeout-graceful-shutdown 5

test: .venv/installed-dev ## run the tests, with branch coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

lint: .venv/installed-dev ## look for faults; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev ## format the code and order the imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## what CI runs: lint, then test

lowest: ## run the tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	sed -n '/^dependencies/,/^]/s/^ *"\([a-z-]*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml \
	    > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-lowest/bin/pip install --quiet --editable . --group dev -c .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pytest

bench: .venv/installed-bench ## measure against the peers, 30 minutes; draws bench/scaling.svg
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.scaling

bench-instructions: .venv/installed-bench ## count instructions with valgrind, for busy machines
	$(BIN)/python -m bench.instructions

bench-quick: .venv/installed-bench ## the same cases small and once, under two minutes
	$(BIN)/python -m bench.run --quick

clean: ## remove all that the other targets made
	rm -rf .venv .venv-lowest build *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf bench/node_modules bench/package-lock.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --group dev
	touch $@

.venv/installed-bench: .venv/installed-dev bench/package.json
	$(BIN)/pip install --quiet --group bench
	if command -v npm >/dev/null; then npm install --silent --prefix bench; fi
	touch $@
