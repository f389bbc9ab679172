# The environment is made from the lock files: with uv where it is there, else with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Ids of advisories that don't concern this project, each with the reason here.
HARMLESS :=

.PHONY: demo test drills check bench lock clean

demo: $(VENV)/.run
	@$(BIN)/python -m relay demo $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest $(ARGS)

# Every fault at full length, on real processes, under load: about twenty minutes.
drills: $(VENV)/.dev
	@$(BIN)/python -m tests.drills $(ARGS)

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:randomly tests/pure/test_architecture.py
	@$(BIN)/python -m ops.audit $(addprefix --ignore=,$(HARMLESS)) requirements.lock requirements-dev.lock

bench: $(VENV)/.dev
	@$(BIN)/python -m ops.bench $(ARGS)
	@$(BIN)/python -m tests.bench $(filter --quick,$(ARGS))

$(VENV)/.run: requirements.lock Makefile
	@$(call install,requirements.lock)

$(VENV)/.dev: requirements-dev.lock Makefile
	@$(call install,requirements-dev.lock)

# Make the environment if it is not there, install a lock file, leave a stamp.
define install
set -e; \
command -v $(PYTHON) >/dev/null || { echo "This needs Python 3.11 or newer: '$(PYTHON)' is not on the PATH (make PYTHON=/path/to/python3)."; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "This needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V 2>&1) (make PYTHON=/path/to/python3)."; exit 1; }; \
if command -v uv >/dev/null; then \
  [ -x $(BIN)/python ] || uv venv --quiet --seed --python "$$(command -v $(PYTHON))" $(VENV); \
  uv pip install --quiet --python $(BIN)/python --require-hashes -r $(1); \
else \
  [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not make a virtual environment; on Debian or Ubuntu: apt install python3-venv."; exit 1; }; \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1); \
fi; \
touch $@
endef

# Needs uv. Raises what is pinned to the newest that pyproject.toml allows.
lock:
	uv pip compile pyproject.toml --extra demo --universal --python-version 3.11 --generate-hashes --no-header --upgrade -q -o requirements.lock
	uv pip compile pyproject.toml --extra demo --group dev --universal --python-version 3.11 --generate-hashes --no-header --upgrade -q -o requirements-dev.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
