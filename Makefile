# Every target sets up what it needs: a virtual environment in .venv, by uv where it
# exists, else by python3 -m venv. Only python3 (3.11+, with venv) is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench soak docs clean

.venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Octaskly needs Python 3.11 or newer, and $(PYTHON) is older"; echo "  hint: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
		uv venv -q --allow-existing --python $(PYTHON) $(VENV) && uv pip install -q --python $(BIN)/python -e . --group test --group lint; \
	else \
		$(PYTHON) -m venv $(VENV) && $(BIN)/pip install -q --upgrade 'pip>=25.1' && $(BIN)/pip install -q -e . --group test --group lint; \
	fi
	@touch $@
