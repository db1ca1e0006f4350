# Everything this project does, each target with all its own set-up.
# A fresh machine needs Python 3.11 or newer (PYTHON=...), make and git.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1

BIN := .venv/bin

.PHONY: help install run test check lint format lowest compat programs clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

compat: .venv/installed-compat tests/compat/node_modules ## meet real servers, proxies, browsers, clients (minutes)
	$(BIN)/python -m pytest -q -W default tests/compat --write-tables docs/compat.md
	@sed -n '/^<!-- tables/,/^<!-- end/p' docs/compat.md

programs: ## install, with apt, the proxies, browsers and node that compat meets
	@for program in nginx haproxy chromium firefox-esr curl node npm; do \
	    PATH=$$PATH:/usr/sbin command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	test -z "$$missing" || { apt-get update -qq && \
	    apt-get install -y -qq $$(echo "$$missing" | sed 's/ node\b/ nodejs/'); }

clean: ## remove all that the other targets made
	rm -rf .venv .venv-lowest build tests/compat/node_modules *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
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

.venv/installed-compat: .venv/installed-dev
	$(BIN)/pip install --quiet --group compat
	touch $@

tests/compat/node_modules: tests/compat/package.json | programs
	npm install --prefix tests/compat --no-package-lock --no-audit --no-fund --silent
	touch $@
