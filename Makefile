.DEFAULT_GOAL := help
.PHONY: help demo test check static ready attacks fuzz bench fmt lock setup clean
SHELL := /bin/bash
BIN := .venv/bin
ROOM ?=
export STOCKADE_AGENTS ?= $(CURDIR)/.tools/agents

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

demo: ## install what is missing, then watch a real agent work inside the wall while a model obeys an attacker
	@scripts/setup --demo
	@scripts/demo

test: ## install what is missing, then every check and test, walls and agents included (as root: also as an ordinary user)
	@scripts/setup --tests
	@scripts/test

check: static ## what to run before each commit: no root, no network, under a minute
	$(BIN)/python -m pytest -q -m "not wall and not root and not agents" $(if $(ROOM),tests/$(ROOM))

static: ready
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

ready:
	@test -x $(BIN)/python || { echo "There is no .venv yet. Make it once with scripts/setup (or scripts/setup --venv, which installs no Debian packages)."; exit 1; }

attacks: ## every attack of the corpus, confined and unconfined
	@scripts/setup --demo
	$(BIN)/stockade drill

fuzz: ## every parser of hostile bytes, a minute each, guided by coverage (longer: scripts/fuzz TARGET SECONDS)
	@scripts/setup --venv
	scripts/fuzz

bench: ## start-up and gateway cost against bare bubblewrap and against peers, where installed
	@scripts/setup
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/gate.py
	$(BIN)/python bench/peers.py
	$(BIN)/python bench/sessions.py
	$(BIN)/python bench/gvisor.py
	$(BIN)/python bench/fatigue.py

fmt: ## format and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

lock: ## renew requirements/*.txt (needs uv)
	scripts/lock

setup: ## only install what is missing
	@scripts/setup

clean: ## remove .venv, .tools, caches and build results
	rm -rf .venv .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
