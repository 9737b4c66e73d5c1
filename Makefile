# make run: a virtual environment, the install, the default campaign. make test: likewise, every test.
# make profile: where a quick campaign's wall time goes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONCURRENT_TESTS := tests/test_campaign.py tests/test_inprocess.py tests/test_verify.py tests/test_run_reader.py \
	tests/test_frame_table.py tests/test_export.py tests/test_status.py tests/test_status_view.py \
	tests/test_preflight.py tests/tasks/test_train.py tests/tasks/test_analyse.py

.PHONY: run test test-fast test-concurrent lint profile clean

run: $(INSTALLED)
	$(BIN)/python app.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

# Everything but the real pilots.
test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not pilot"

# In-process campaigns once more, in the concurrent coupling; a real pilot has its own concurrent campaign in make test.
test-concurrent: $(INSTALLED)
	$(BIN)/python -m pytest -m "not pilot" --coupling concurrent $(CONCURRENT_TESTS)

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
