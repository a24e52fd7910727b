# Two commands for newcomers: `make demo` draws a picture, `make test` checks everything. `make` lists all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.agentsd-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

DEMO_PROMPT ?= a red ring below a small blue cross on a striped gray background
DEMO_OUTPUT ?= outputs/demo.png
EVAL_OPTIONS ?= --num 32 --steps 20 --timing-prompts 6
EVAL_OUTPUT ?= outputs/eval-demo

.PHONY: help install demo eval-demo test test-slow lint docs notebooks package

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with the tested versions (done once)

# --group needs pip 25.1; torch first and alone: then a CPU index or find-links decides the build.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or later is needed, and {sys.executable} is {sys.version.split()[0]}; choose another: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) 'pip>=25.1'
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt --editable . --group dev
	touch $@

demo: $(STAMP) ## draw with the bundled model, stock beside agentsd, into outputs/
	$(BIN)/python scripts/generate.py --model demo-sd15 --compare --prompt '$(DEMO_PROMPT)' --output '$(DEMO_OUTPUT)' --force

eval-demo: $(STAMP) ## evaluate the bundled model against rendered scenes (ten to forty minutes), into outputs/
	$(BIN)/python scripts/fid_eval.py --reference demo $(EVAL_OPTIONS) --output '$(EVAL_OUTPUT)'

test: $(STAMP) ## run the test suite, a file to a process
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

notebooks: $(STAMP) ## run the notebooks and keep their outputs
	$(BIN)/python scripts/dev/notebooks.py

docs: $(STAMP) ## build the documentation into outputs/site; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

package: $(STAMP) ## build wheel and source archive into dist/, and check both
	$(BIN)/python -m pytest -m slow tests/test_package.py
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

lint: $(STAMP) ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
