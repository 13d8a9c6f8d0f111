PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-fast check clean

demo: .venv/installed
	$(BIN)/prep refresh --config data_samples/prep.toml

# two at a time: most of the tests wait for processes of their own
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: check
	$(PYTEST)

# no processes, no kills, no cluster
test-fast: check
	$(PYTEST) tests/unit tests/integration

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv work
