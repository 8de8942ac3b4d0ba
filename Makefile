# Everything starts here. Each target sets up what it needs: a fresh clone needs `make`, Python 3.11 or later, and a
# package index.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
TARGET ?=

.PHONY: help run test unit e2e conformance check fix proto bench mutate docs lock clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11: run make with PYTHON=python3.11 (or later)" >&2; exit 1; }
	@echo "installing into $(VENV) (about a minute, the first time) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP) ## watch a real Envoy let requests in and turn them away (ARGS=--once to end afterwards)
	@$(BIN)/authz demo $(ARGS)

test: check ## everything: format, lint, types, generated files, all tests, and the core's coverage
	@$(BIN)/python -m pytest --cov --cov-report= $(ARGS)
	@$(BIN)/coverage report --include='authz/core/*,authz/gate.py' --skip-covered --show-missing --fail-under=100

unit: $(STAMP) ## the inner loop: tests that need no other program, under a minute
	@$(BIN)/python -m pytest -n 2 -m 'not e2e and not keycloak and not process' $(ARGS)

e2e: $(STAMP) ## tests through a real Envoy, istiod, grpcurl and Keycloak, and of the manifests
	@$(BIN)/python -m pytest -m 'e2e or keycloak' $(ARGS)

conformance: $(STAMP) ## hold any ext_authz gRPC server to Envoy's words (TARGET=host:port)
	@test -n "$(TARGET)" || { echo "name the server: make conformance TARGET=127.0.0.1:9001 (what it must be set to:" \
	  "tests/conformance/README.md)" >&2; exit 2; }
	@$(BIN)/python -m tests.conformance.run "$(TARGET)" $(ARGS)

check: $(STAMP) ## format, lint, types, generated files are current
	@$(BIN)/ruff format --check --quiet . || { echo "run make fix" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python tools/proto.py --check
	@$(BIN)/python tools/docs.py --check

fix: $(STAMP) ## mend what can be mended by itself
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

proto: $(STAMP) ## generate authz/pb from proto/
	@$(BIN)/python tools/proto.py

docs: $(STAMP) ## generate the tables of docs/ and of the chart from the code
	@$(BIN)/python tools/docs.py

bench: $(VENV)/.bench ## CPU per check, side by side with servers that do nothing, and with peers (ARGS=--quick)
	@$(BIN)/python bench/bench.py $(ARGS)

$(VENV)/.bench: $(STAMP) requirements/bench.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/bench.txt
	@touch $@

mutate: $(STAMP) ## mutation testing of authz/core (an hour or more; docs/mutants.md explains the survivors)
	@$(BIN)/mutmut run

lock: $(STAMP) ## resolve the dependencies anew and pin them by hash
	@$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal \
	  pyproject.toml --group dev -o requirements/dev.txt
	@$(BIN)/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal \
	  pyproject.toml --extra demo --extra fast -c requirements/dev.txt -o requirements/runtime.txt
	@$(BIN)/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal \
	  --group pyproject.toml:bench -c requirements/dev.txt -o requirements/bench.txt
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(BIN)/uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal \
	  - -c requirements/dev.txt -o requirements/build.txt

clean: ## remove what the targets made
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .coverage mutants
