# make demo | test | lint | bench | clean: each sets up what it needs; nothing is fetched twice.

# the first that is new enough; `make PYTHON=/path/to/python` chooses another
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
  $(shell $(name) -c 'import sys; sys.version_info < (3, 11) or print("$(name)")' 2>/dev/null)))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# a hundred processes are started by the tests: each would compile everything anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: .venv/runtime.stamp
	@$(BIN)/sluice demo

test: .venv/development.stamp .venv-openai1/stamp tests/clients/node_modules/stamp
	$(BIN)/python -m pytest -n 3 --dist loadgroup

lint: .venv/development.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/development.stamp .venv-smg/stamp
	$(BIN)/python -m tests.bench.compare $(BENCH)

clean:
	rm -rf .venv .venv-openai1 .venv-smg tests/clients/node_modules build *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .import_linter_cache

.venv/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Sluice needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/runtime.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

.venv/development.stamp: .venv/runtime.stamp
	$(PIP) 'pip>=25.1'
	$(PIP) --constraint constraints.txt --editable '.[postgres,tokenizers,otel]' --group dev
	@touch $@

# an SDK of the generation before last, which many applications still use: it and the newest exclude each other
.venv-openai1/stamp: tests/clients/openai1.txt | .venv/bin/python
	test -x .venv-openai1/bin/python || .venv/bin/python -m venv .venv-openai1
	.venv-openai1/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/openai1.txt
	@touch $@

# a router in Rust to compare with; where there is no wheel of it, the comparison goes without
.venv-smg/stamp: tests/bench/smg.txt | .venv/bin/python
	test -x .venv-smg/bin/python || .venv/bin/python -m venv .venv-smg
	.venv-smg/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/bench/smg.txt && touch $@ \
	  || echo "SMG CANNOT BE INSTALLED: the comparison goes without it"

# a download that stands still is begun anew: npm would wait five minutes
tests/clients/node_modules/stamp: tests/clients/package.json tests/clients/package-lock.json
	@if command -v npm >/dev/null; then \
	  cd tests/clients && npm ci --silent --no-audit --no-fund --fetch-timeout=30000 --fetch-retries=5 && touch node_modules/stamp; \
	else \
	  echo "NODE IS NOT INSTALLED: the tests of the Node SDK will be skipped"; \
	fi
