SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := sb3_trpo tests benchmarks examples docs

# Of each set of packages a stamp, which is made when its installation is complete
DEMO := $(VENV)/.installed-demo
TESTS := $(VENV)/.installed-tests
DOCS := $(VENV)/.installed-docs
UNFINISHED := $(VENV)/.unfinished
EXTRAS_OF_TESTS := tests,benchmarks
WANTED := setup.cfg pyproject.toml constraints.txt

# While an installation is not finished, none before it counts
ifneq ($(wildcard $(UNFINISHED)),)
$(shell rm -f $(DEMO) $(TESTS) $(DOCS))
endif

# $(call install,extras): pip takes half of a package for all of it, so what was interrupted is begun anew
define install
	@if test -e $(UNFINISHED) || ! $(BIN)/python -m pip --version > /dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(UNFINISHED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(1)]"
	@rm $(UNFINISHED)
	@touch $@
endef

$(DEMO): $(WANTED)
	$(call install,demo)

# These bring what the demo needs
$(TESTS): $(WANTED)
	$(call install,$(EXTRAS_OF_TESTS))
	@touch $(DEMO)

$(DOCS): $(WANTED)
	$(call install,docs)

install: $(TESTS)

demo: $(DEMO)
	$(BIN)/python examples/demo.py

format: $(TESTS)
	$(BIN)/ruff check --fix --select I $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lint: $(TESTS)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

type: $(TESTS)
	$(BIN)/mypy

# What a change to one module needs, in seconds: make quick MODULE=objective, or a folder: make quick MODULE=trust_region
quick: lint
	@tests=$$(find tests -path 'tests/$(MODULE)/test_*.py' -o -name 'test_$(MODULE).py' -o -name 'test_$(MODULE)_*.py'); \
	test -n "$$tests" || { echo "MODULE is '$(MODULE)', after which no test is named: say make quick MODULE=objective"; exit 1; }; \
	set -x; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $$tests tests/test_layers.py

test: lint type
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.covering -n 2 --dist worksteal --cov --cov-fail-under=95

test-slow: $(TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-examples: $(TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m examples

# Warnings are errors, and whatever a page points to inside of the site must be there: docs/_build/html/index.html
docs: $(DOCS)
	rm -rf docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/check_site.py docs/_build/html

# And what it points to elsewhere, which needs a network
docs-links: docs
	$(BIN)/python -m sphinx -W --keep-going -q -b linkcheck docs docs/_build/links

# The site as a reader has it: every public name is described, and no page is wider than a phone (which needs Chromium)
test-docs: $(TESTS) $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docs tests/promises/test_site.py

# The quick part of the tests with every Python from 3.10 to 3.13 that is there, and with the oldest versions of setup.cfg
test-matrix:
	$(PYTHON) tests/matrix.py

# imitation asks for an older SB3 and works with this one: it is no extra, since its own requirements would take SB3 down with it
test-imitation: $(TESTS)
	$(BIN)/python -m pip install --quiet --no-deps imitation==1.0.1
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m imitation tests/promises/test_imitation.py

# sb3-contrib's own tests of RecurrentPPO, MaskablePPO and of TRPO on Dict observations, with ours in their place; they come with
# its sources, and are not part of its wheel
test-contrib: $(TESTS)
	rm -rf $(VENV)/contrib_tests
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary sb3_contrib --dest $(VENV)/contrib_tests \
		"sb3_contrib==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("sb3_contrib"))')"
	tar --extract --file $(VENV)/contrib_tests/*.tar.gz --directory $(VENV)/contrib_tests --strip-components 1
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m contrib tests/promises/test_contribs_own_tests.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -c $(VENV)/contrib_tests/pyproject.toml -p tests.as_contrib -k TRPO \
		$(VENV)/contrib_tests/tests/test_dict_env.py

# The old Gym lies in a folder of its own, where SB3 finds it in this run only
test-gym: $(TESTS)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/old_gym gym==0.26.2 gym_notices
	$(BIN)/python -m pip install --quiet "shimmy>=2.0"
	PYTHONPATH=$(VENV)/old_gym OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/promises/test_environments_accepted.py

# Each of several hundred mistakes in the numerics must be noticed by a test; a quarter of an hour
mutation: $(TESTS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mutation]"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

bench: $(TESTS)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.vector_envs

# What more processes cost and bring; minutes
bench-scale: $(TESTS)
	$(BIN)/python -m benchmarks.scale

# Days of computing: see benchmarks/README.md for parts of it. Skips what is on record
WORKERS ?= 1
UNTOUCHED := benchmarks/results/untouched
bench-returns: $(TESTS)
	$(BIN)/python -m benchmarks.sweep --envs mujoco classic box2d --seeds 10-14 --results $(UNTOUCHED) --workers $(WORKERS)
	$(BIN)/python -m benchmarks.sweep --envs more-mujoco --algorithms trpo --seeds 10-14 --results $(UNTOUCHED) --workers $(WORKERS)
	$(BIN)/python -m benchmarks.sweep --envs atari --seeds 10 --results $(UNTOUCHED) --workers $(WORKERS)
	$(BIN)/python -m benchmarks.report --results $(UNTOUCHED)

# Hours of computing. Skips what is on record
bench-defaults: $(TESTS)
	$(BIN)/python -m benchmarks.library_defaults --seeds 20-24 --workers $(WORKERS)

commit-checks: format lint type

# What is published, in dist/
dist: $(TESTS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

.PHONY: install demo format lint type quick docs docs-links dist test test-slow test-examples test-docs test-matrix test-imitation test-contrib test-gym mutation bench bench-scale bench-returns bench-defaults commit-checks
