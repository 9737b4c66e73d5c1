# make run: a virtual environment, the install, the default campaign. make test: likewise, every test.
# make profile: where a quick campaign's wall time goes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-fast lint profile clean

run: $(INSTALLED)
	$(BIN)/python app.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

# Everything but the real pilots.
test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not pilot"

profile: $(INSTALLED)
	$(BIN)/python benchmarks/wall_time.py --output runs/profile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy entk_app

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12), \
	"Python 3.10, 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + ": give it with make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info
