# Two commands do everything: `make demo` and `make test`. The rest is for those who work here.
#
#   make demo [ONCE=1]      a virtual environment, simulated engines, the gateway, real answers
#   make test               lint, types, layers, tests, coverage
#   make test PYTHON=python3.13
#   make bench              what a request and an event cost, beside bare proxies in the same run
#   make bench-counting     what counting costs, and how long it holds the event loop
#   make bench-admission    what limits cost, in memory, in Redis and in slices; and how exactly they hold
#   make loadtest           policies over sockets, before simulated engines, beside what the twin says (minutes)
#   make lock               pin all dependencies anew
#   make tokenizer          train the demo's tokenizer anew
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first interpreter that runs and is 3.11 or newer.
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done
ifndef PYTHON
PYTHON := $(shell $(FIND_PYTHON))
VENV ?= .venv
else
VENV ?= .venv-$(notdir $(PYTHON))
endif
BIN := $(VENV)/bin
# Tests wait about as long as they compute: two workers for each core.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 4 ? 2 * n : 8)))
# Workers and what they start compile each module once, not each for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint tests redis bench bench-counting bench-admission loadtest install lock tokenizer schema clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(VENV)/.installed

$(VENV)/.installed: deploy/lock/dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (set PYTHON=...)"; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/lock/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	@$(BIN)/headgate demo $(if $(ONCE),--once)

test: lint tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

# Some tests need a real redis-server. Where it is not there and cannot be had, pytest's last line says so.
redis:
	@./deploy/ensure_redis.sh

tests: install redis
	$(BIN)/pytest -n $(JOBS) --dist loadgroup --cov --cov-report=term:skip-covered $(ARGS)

bench: install
	$(BIN)/python -m tests.benchmarks.gateway_cost $(ARGS)

bench-counting: install
	$(BIN)/python -m tests.benchmarks.counting --json loadtest/results/counting.json $(ARGS)

bench-admission: install
	$(BIN)/python -m tests.benchmarks.admission $(ARGS)

loadtest: install
	$(BIN)/python -m loadtest fleet $(ARGS)

# Universal: one lock for every platform and Python version that is supported.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --quiet --output-file deploy/lock/runtime.lock
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file deploy/lock/dev.lock
	echo 'hatchling>=1.27' | uv pip compile - --constraint deploy/lock/dev.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file deploy/lock/build.lock

tokenizer: install
	$(BIN)/python deploy/tokenizers/train.py

schema: install
	$(BIN)/python -m gateway.config.schema > gateway/config/routes.schema.json

clean:
	rm -rf .venv .venv-* .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
