# Two commands on a fresh machine with Python 3.11+ (venv), git and make:
#   make demo   runs the demo study to its report in runs/demo
#   make test   runs every check
.PHONY: demo test check clean
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "bakeoff needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/bakeoff demo --out runs/demo

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vermin --target=3.11- --no-tips --violations --quiet src tests benchmarks scripts examples

test: check
	$(VENV)/bin/bakeoff assets all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV)
