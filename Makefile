# Tiebreak. `make` alone lists what there is; every target does its own set-up.
.DEFAULT_GOAL := help
.PHONY: help install install-dev demo up dev test lint bench clean distclean

BIN := .venv/bin
ARGS ?=
JOBS ?= 2
PORT ?= 8000

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: ## make .venv, with what it takes to run everything on this machine
	@scripts/install.sh embedded,train

install-dev:
	@scripts/install.sh embedded,train,dev

demo: install ## the platform with a demo campaign: build a small model, seed, start, print sign-in links
	@$(BIN)/tiebreak demo $(ARGS)

up: install ## the platform on your own data (ARGS="--port 8080 --data DIR")
	@$(BIN)/tiebreak up $(ARGS)

dev: install-dev ## the platform with a web process that reloads when a file changes (PORT=8000)
	@$(BIN)/python -m app.supervisor $(PORT)

lint: install-dev ## ruff, formatting, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: lint ## everything: lint, then the suite on real PostgreSQL, Redis, Celery and Chromium (ARGS="-k word")
	@scripts/ensure_chromium.sh
	@$(BIN)/pytest -n $(JOBS) $(ARGS)

bench: install ## run the benchmarks
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

clean: ## remove caches and build output; never data, never .venv
	@rm -rf build dist test-results .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean ## clean, and remove .venv
	@rm -rf .venv
