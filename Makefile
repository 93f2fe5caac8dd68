# Every target sets up what it needs in a virtual environment, .venv: by uv where it
# exists, else by python3 -m venv. Only python3 (3.11+, with venv) is assumed. The
# distribution's own Python comes first: it is built with profile-guided optimisation,
# most others are not, and cost an agent a seventh more CPU.
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin

# Modules are compiled once, even where the environment turns bytecode off: an agent then
# starts in two thirds of the time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check docs recording bench soak package clean .venv tools audit

# The product alone, which is all that a user needs.
.venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Octaskly needs Python 3.11 or newer, and $(PYTHON) is older"; echo "  hint: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up Octaskly in $(VENV), once:"
	@if command -v uv >/dev/null 2>&1; then \
		uv venv -q --allow-existing --python $(PYTHON) $(VENV) && uv pip install --compile-bytecode --python $(BIN)/python -e .; \
	else \
		$(PYTHON) -m venv --clear $(VENV) && $(BIN)/pip install --disable-pip-version-check -e .; \
	fi
	@touch $@

# What tests, checks, pages and packages need besides.
tools: $(VENV)/.tools-ready

$(VENV)/.tools-ready: pyproject.toml $(VENV)/.ready
	@echo "Installing the tools of development in $(VENV), once; this takes about a minute."
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --python $(BIN)/python --group test --group lint; \
	else \
		{ test -x $(BIN)/pip || $(BIN)/python -m ensurepip >/dev/null; } && $(BIN)/python -m pip install -q --upgrade 'pip>=25.1' && \
		$(BIN)/python -m pip install -q --group test --group lint; \
	fi
	@touch $@

# Three agents on this machine find each other and share a real job.
demo: .venv
	@$(BIN)/octaskly demo

# All tests. As root on Debian it brings what they need besides Python, and runs most of
# them in four processes, each with a network of its own: three for those that wait most
# of the time, and one that computes meanwhile, then helps
# (`tests/support/xdist_schedule.py`). Behind them come those that want the machine for
# themselves, one by one, while the 500 seeds of the simulation take what core time they
# leave; no other file is collected then. It says which of these took long.
test: tools
	@tests/setup-host
	@$(BIN)/python -m compileall -q -j 0 -x /test_ octaskly tests  # Once, not in each process.
ifeq ($(shell id -u),0)
	@$(BIN)/pytest -n 4 --dist loadfile -m 'not soak and not alone' $(PYTEST_FLAGS)
	@$(BIN)/pytest -n 2 --dist loadfile -m 'alone and not soak' --durations 0 --durations-min 5 $(PYTEST_FLAGS) $$(grep -rl --include='test_*.py' 'mark\.alone' tests) || test $$? -eq 5  # None.
else
	@$(BIN)/pytest $(PYTEST_FLAGS)
endif

check: tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy octaskly tests benchmarks docs/examples
	$(BIN)/lint-imports
	$(BIN)/python -m tests.structure

# The parts of the reference that are made from the code, then all pages as a site in
# build/site; a link that leads nowhere is an error.
docs: tools
	@$(BIN)/python -m tests.docs.reference
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/site
	@echo build/site/index.html

# The picture of the demo that the README shows, made of a real run.
recording: tools
	@$(BIN)/python docs/record.py docs/images/demo.svg "make demo" $(BIN)/octaskly demo

# What others know of holes: dubious code, and dependencies with published ones.
# Of bandit, low findings are left out (asserts state invariants; starting programs is
# what an agent is for), and B104 and B608, which ruff checks as S104 and S608 in
# `check`: each place says there why it is sound. pip-audit needs a way to PyPI, so it is
# not part of `check`; a package that it could not ask about, it lists as skipped.
audit: tools
	@test -x $(VENV)/audit/bin/bandit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install -q bandit pip-audit; }
	$(VENV)/audit/bin/bandit -q -ll -s B104,B608 -r octaskly
	$(BIN)/python -m pip freeze --exclude-editable 2>/dev/null > $(VENV)/audit/frozen.txt || uv pip freeze --python $(BIN)/python --exclude-editable > $(VENV)/audit/frozen.txt
	$(VENV)/audit/bin/pip-audit --disable-pip --no-deps -r $(VENV)/audit/frozen.txt

# Numbers, beside the tools that one would use instead.
bench: tools $(VENV)/.bench-ready
	@tests/setup-host redis-server=redis-server nginx=nginx-light gearmand=gearman-job-server gearman=gearman-tools
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

$(VENV)/.bench-ready: pyproject.toml $(VENV)/.tools-ready
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install -q --python $(BIN)/python --group bench; \
	else \
		$(BIN)/pip install -q --group bench; \
	fi
	@touch $@

# The slow truth: fresh seeds of the simulation, over an hour of them on two cores, then
# each simulation, property and mesh test again and again, with new seeds, until SOAK_S
# seconds are over; also all fault cases, and random faults for SOAK_FAULTS_S seconds.
# One case alone: .venv/bin/pytest -m "" tests/mesh -k f9_
SOAK_SEEDS ?= 100000
SOAK_S ?= 3600
export SOAK_FAULTS_S ?= 1800
export SOAK_ROUTE_S ?= 60
SOAK_ROUTES := tests/attack/test_routes_for_a_minute.py
SOAK_TESTS ?= tests/property tests/simulation tests/integration tests/mesh \
	tests/attack
soak: tools $(VENV)/.bench-ready
	@$(BIN)/pytest -q -m soak tests/cli tests/packages tests/executor $(SOAK_ROUTES)
	@$(BIN)/python -m tests.simulation.hunt $(SOAK_SEEDS)
	@for kind in forgetful unordered skewed updated steered newcomers failing freed cut_off \
		asleep frozen waking killed ring ringed; do \
		$(BIN)/python -m tests.simulation.hunt $$(( $(SOAK_SEEDS) / 20 )) $$kind || exit 1; \
	done
	@end=$$(( $$(date +%s) + $(SOAK_S) )); round=0; \
	while [ $$(date +%s) -lt $$end ]; do \
		round=$$(( round + 1 )); seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
		echo "soak: round $$round, seed $$seed"; \
		HYPOTHESIS_PROFILE=soak $(BIN)/pytest -q -x -m '' --timeout 900 --randomly-seed=$$seed --ignore $(SOAK_ROUTES) $(SOAK_TESTS) || exit 1; \
	done

# A wheel and an sdist in dist, and where dpkg-deb is there a .deb made of the wheel.
DIST ?= dist
package: tools
	@mkdir -p $(DIST)
	@$(BIN)/python -m build --outdir $(DIST) . >$(DIST)/build.log || { cat $(DIST)/build.log; exit 1; }
	@if command -v dpkg-deb >/dev/null 2>&1; then \
		PIP=$(BIN)/pip packages/debian/build $$(ls -t $(DIST)/*.whl | head -1) $(DIST) >/dev/null; \
	fi
	@rm -f $(DIST)/build.log; ls -1 $(DIST)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
