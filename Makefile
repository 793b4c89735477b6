# FLoRAL-Bench. `make` without a target prints all targets.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell command -v python3 || command -v python)
INSTALLED := $(VENV)/.installed

# Without this, each start waits 9 s on a machine that has SLURM's commands but no controller that answers.
LOCAL := SLURM_CONF=/dev/null

# Snakemake needs a folder for its cache. A home folder that is read-only has no place for it.
ifneq ($(shell cache="$${XDG_CACHE_HOME:-$$HOME/.cache}"; mkdir -p "$$cache" 2>&- && test -w "$$cache" && echo writable),writable)
export XDG_CACHE_HOME := $(CURDIR)/.cache
endif

# Address of `make ui` and `make ui-server`. For the server also: host names that clients may use, and its processes.
PORT := 5000
HOST := 127.0.0.1
ALLOWED :=
WORKERS := 4

# Database of `make ui-server`. It contains a password, so it goes through the environment, which `ps` does not show.
STORE ?=
export STORE

# `$(FOLDER) results` prints the results folder of the settings. Make itself would read a `$` in FLORAL_RESULTS.
FOLDER = $(BIN)/python -m floral.cli.folder

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slurm test-wheel style check docs bench ui ui-server clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install every pinned package

$(INSTALLED): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo "Python is missing: install Python 3.11 or newer"; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; $(PYTHON) is " + sys.version.split()[0] + " (choose another: make setup PYTHON=python3.12)")'
	@test -x $(BIN)/python || '$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); echo "python -m venv failed: on Debian and Ubuntu it needs the package python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,docs]"
	@touch $@

quickstart: $(INSTALLED) ## compare FLoRAL with other methods on real data: minutes on a laptop
	$(LOCAL) $(BIN)/snakemake --profile local --config suite=quickstart
	@echo
	@reports="$$($(FOLDER) reports)" && echo "The report:     $$reports/quickstart/index.html"
	@echo "The MLflow UI:  make ui"

test: $(INSTALLED) ## run the tests; a test whose tool is missing is skipped, with the tool's name
	$(LOCAL) $(BIN)/pytest --numprocesses auto --dist worksteal

test-slurm: $(INSTALLED) ## start SLURM with two nodes on this machine (as root) and let it kill jobs: 4 minutes
	timeout --signal=INT 1500 $(BIN)/pytest -m slurm tests/slurm

test-wheel: $(INSTALLED) ## build the wheel, install it into a fresh environment, and run a study there: 2 minutes
	$(LOCAL) $(BIN)/pytest -m wheel tests/wheel

style: $(INSTALLED) ## style and direction of imports: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow floral/cli/study/Snakefile
	$(BIN)/lint-imports

check: style ## style, types, direction of imports, workflow
	$(BIN)/pyright
	$(LOCAL) $(BIN)/pytest tests/workflow/test_lint.py

docs: $(INSTALLED) ## build the documentation into site/; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict
	@echo "The documentation: site/index.html (its search needs a server: $(BIN)/mkdocs serve)"

bench: $(INSTALLED) ## time a round against bare PyTorch: 8 minutes, with nothing else running
	$(BIN)/floral bench report

ui: $(INSTALLED) ## show the tracked runs of the results folder in MLflow at http://127.0.0.1:5000
	@$(BIN)/floral ui --port $(PORT)

ui-server: $(INSTALLED) ## serve MLflow from PostgreSQL to several users: make ui-server STORE=postgresql://user:password@host/db
	@case "$$STORE" in postgresql://*|postgresql+*://*) ;; *) echo "STORE names no PostgreSQL database: make ui-server STORE=postgresql://user:password@host/database (docs/how-to/mlflow.md)"; exit 1;; esac
	@$(BIN)/python -c 'import psycopg2' 2>/dev/null || { echo "psycopg2 is missing: $(BIN)/pip install -c constraints.txt psycopg2-binary"; exit 1; }
	@$(BIN)/python -c 'import socket; socket.create_server(("$(HOST)", $(PORT)))' 2>/dev/null || { echo "$(HOST):$(PORT) cannot be used: another program listens there, or this machine has no such address or port; choose another: make ui-server PORT=5001 STORE=…"; exit 1; }
	@artifacts="$$ARTIFACTS"; test -n "$$artifacts" || artifacts="$$($(FOLDER) results)/track/server-artifacts" || exit 1; \
		echo "Runs reach it with tracking_uri: http://$(HOST):$(PORT) in config/config.yaml; artifacts go to $$artifacts"; \
		MLFLOW_DISABLE_TELEMETRY=true MLFLOW_BACKEND_STORE_URI="$$STORE" exec $(BIN)/mlflow server --host $(HOST) --port $(PORT) --workers $(WORKERS) \
		--artifacts-destination "$$artifacts" $(if $(ALLOWED),--allowed-hosts "$(ALLOWED)")

clean: ## remove .venv, caches and Snakemake's records; results and reports stay
	rm -rf $(VENV) site .snakemake .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find floral tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "results/ and reports/ are kept; remove them by hand to start anew."
