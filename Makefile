# make demo   install, then run the shipped policy with several samplers on the same seeds
# make test   install, then run the fast tests
PYTHON ?= python3
TASK ?= square
BIN := .venv/bin

.PHONY: install demo test test-slow lint format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else "asd-policy needs Python 3.11 or 3.12: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

demo: install
	$(BIN)/python scripts/evaluate.py --checkpoint checkpoints/$(TASK) --seeds 100000-100002 --out results/demo-$(TASK) --overwrite

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
