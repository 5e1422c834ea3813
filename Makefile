# Everything goes through one virtual environment; `make setup` is a no-op while its inputs are unchanged.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup serve test lint bench demo clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

serve: setup  ## the demo model on 127.0.0.1:8000
	$(BIN)/medusa serve

test: setup  ## the whole test suite
	$(BIN)/pytest

lint: setup  ## formatting, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## tokens per step and decode speed of the demo model
	$(BIN)/python benchmarks/decode.py

demo: setup  ## train the demo model anew, from the standard library to the heads, in .work/demo
	$(BIN)/python -m medusa_core.demo.build --work .work/demo

clean:  ## caches, build output and the virtual environment
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
