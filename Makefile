# A fresh machine needs these two: make quickstart, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint docs notebook install

quickstart: $(BIN)/kdbench
	$(BIN)/kdbench run experiment=quickstart

test: $(BIN)/pytest
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(BIN)/pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(BIN)/pytest
	$(BIN)/python docs/build.py

# After new records: the committed notebook shows what it says of them.
notebook: $(BIN)/pytest
	$(BIN)/jupyter nbconvert --log-level WARN --execute --to notebook --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/results.ipynb

install: $(BIN)/kdbench

$(BIN)/kdbench: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(BIN)/pytest: $(BIN)/kdbench
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
