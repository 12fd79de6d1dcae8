SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := sb3_trpo tests benchmarks examples

# Installs once; again only when what is to be installed has changed
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tests,benchmarks]"
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix --select I $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

type: $(INSTALLED)
	$(BIN)/mypy

# What a change to one module needs, in seconds: make quick MODULE=objective, or a folder: make quick MODULE=trust_region
quick: lint
	@tests=$$(find tests -path 'tests/$(MODULE)/test_*.py' -o -name 'test_$(MODULE).py' -o -name 'test_$(MODULE)_*.py'); \
	test -n "$$tests" || { echo "MODULE is '$(MODULE)', after which no test is named: say make quick MODULE=objective"; exit 1; }; \
	set -x; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $$tests tests/test_layers.py

test: lint type
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov --cov-fail-under=95

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# imitation asks for an older SB3 and works with this one: it is no extra, since its own requirements would take SB3 down with it
test-imitation: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps imitation==1.0.1
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m imitation tests/promises/test_imitation.py

# The old Gym lies in a folder of its own, where SB3 finds it in this run only
test-gym: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/old_gym gym==0.26.2 gym_notices
	$(BIN)/python -m pip install --quiet "shimmy>=2.0"
	PYTHONPATH=$(VENV)/old_gym OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/promises/test_environments_accepted.py

# Each of several hundred mistakes in the numerics must be noticed by a test; half an hour
mutation: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mutation]"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed

# Days of computing: see benchmarks/README.md for parts of it. Skips what is on record
WORKERS ?= 1
bench-returns: $(INSTALLED)
	$(BIN)/python -m benchmarks.sweep --envs mujoco classic box2d --algorithms trpo --seeds 0-4 --workers $(WORKERS)
	$(BIN)/python -m benchmarks.sweep --envs mujoco classic box2d --algorithms contrib ppo --seeds 0-2 --workers $(WORKERS)
	$(BIN)/python -m benchmarks.report

commit-checks: format lint type

.PHONY: install demo format lint type quick test test-slow test-imitation test-gym mutation bench bench-returns commit-checks
