.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv run test check format lock bench clean

VENV := .venv
BIN := $(VENV)/bin
# Override to choose an interpreter: make PYTHON=/path/to/python run
PYTHON ?=
# Passed on to the program: make test ARGS='-k feed', make run ARGS='--help'
ARGS ?=
UV ?= uv
# Processes that run the tests: most of them wait most of the time.
JOBS ?= 2

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.stamp-app ## Start Alameda with its own PostgreSQL (ARGS='--help' lists every setting)
	@exec $(BIN)/alameda serve $(ARGS)

test: $(VENV)/.stamp-dev ## Run every test, on an embedded PostgreSQL (ARGS='-k name' picks some, JOBS=0 runs them in one process)
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.stamp-dev ## Format, lint, import contracts and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.stamp-dev ## Format, and repair what the linter can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-dev ## Run the benchmarks (ARGS are passed on)
	@$(BIN)/python -m benchmarks $(ARGS)

venv: $(VENV)/.stamp-dev ## Set up .venv with the development tools

# Each lock is laid over the one before it, so that a package has one version in all three.
LOCK := compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links
lock: ## Resolve the requirements*.txt anew, after pyproject.toml has changed (needs uv; ARGS=--upgrade takes newer versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or UV=/path/to/uv" >&2; exit 1; }
	$(UV) pip $(LOCK) $(ARGS) pyproject.toml --output-file requirements.txt
	$(UV) pip $(LOCK) $(ARGS) pyproject.toml --group dev --constraints requirements.txt --output-file requirements-dev.txt
	$(UV) pip $(LOCK) $(ARGS) --group build --constraints requirements-dev.txt --output-file requirements-build.txt

clean: ## Remove the virtual environment and every cache; data stays
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .schemathesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A version manager's shim answers to `command -v` for versions that it does not have, so each candidate is run.
define FIND_PYTHON
for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$candidate; break; fi; \
done
endef

$(BIN)/python:
	@$(FIND_PYTHON); \
	if [ -z "$${found:-}" ]; then \
		echo "Alameda needs Python 3.11 or newer, and none was found. Install it, or name it: make PYTHON=/path/to/python run" >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
		echo "$$found has no venv module. On Debian or Ubuntu: apt-get install python3-venv (or name another: make PYTHON=/path/to/python run)" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV)

# Twice quiet: errors only. Whatever index, proxy and certificates the user's pip is set up with stay in force.
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

$(VENV)/.stamp-run: requirements.txt requirements-build.txt | $(BIN)/python
	@echo "Installing $$(cat $^ | grep -c ==) locked packages (once; the database is one of them)"
	@$(PIP) install --require-hashes -r requirements.txt -r requirements-build.txt
	@touch $@

# No build isolation: the build backend is the locked one, not whatever is newest today.
$(VENV)/.stamp-app: pyproject.toml $(VENV)/.stamp-run
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stamp-dev: requirements-dev.txt $(VENV)/.stamp-app
	@echo "Installing the development tools (once)"
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@
