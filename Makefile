# Nothing is needed beforehand but Python >= 3.11, make and the package registry: each target sets up .venv for itself.

PYTHON ?= python3
# pytest's own arguments, e.g. make test PYTEST_ARGS="tests/ops -x"
PYTEST_ARGS ?= -n auto --maxprocesses=4
KIND ?= cpu
TUTORIALS ?= $(wildcard tutorials/[0-9]*.py)
INTEROP_ARGS ?= tests/interop tests/benchmarks/peers tests/benchmarks/test_em.py
BIN := .venv/bin

.PHONY: demo test lint bench interop docs tutorials clean

# The main job: train on English letters; figures and tables go to demo_results/.
demo: .venv/installed-checks
	$(BIN)/python -m examples.letters

# All tests but the slow ones, and the doctests. A process a core, so one thread each.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# Speed against other libraries, in an environment of its own: ARGS=--quick for a minute, ARGS=--output to save, KIND=em
# for expectation maximisation.
bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks $(KIND) $(ARGS)

# Numbers against other libraries, in the same environment: tests that `make test` skips where these are not installed.
interop: .venv-bench/installed
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m pytest $(INTEROP_ARGS)

# The documentation, in docs/_build/html; a warning is an error.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

# Run the tutorials and write their notebooks; TUTORIALS=tutorials/01*.py for some. tqdm would warn that it draws its
# bars without widgets, and name a path of this machine.
tutorials: .venv/installed-docs
	cd tutorials && PYTHONWARNINGS="ignore:IProgress not found" ../$(BIN)/jupytext --to ipynb --execute $(notdir $(TUTORIALS))

# .venv with the project and the extra named after the dash; again when a file it depends on is newer than the stamp.
# torch comes first, by its pinned version: whatever asked for it later might get another build.
.venv/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("needs Python 3.11 or later: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

.venv-bench/installed: pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("needs Python 3.11 or later: make PYTHON=...")'
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --constraint benchmarks/constraints.txt \
		--editable . dynamax 'jax[cpu]' hmmlearn funsor pomegranate pytest hypothesis
	touch $@

# Everything made here but the environments.
clean:
	rm -rf build dist demo_results docs/_build docs/_pages .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name '.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
