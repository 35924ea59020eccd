# Two commands: `make demo` and `make test`. Each sets up what it needs; a second call is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Processes that run tests side by side, about 1 GB each; `make test WORKERS=0` runs them in one, and so does pytest by itself.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: demo test test-long test-tools lint setup clean

demo: setup
	@$(BIN)/hapctl demo --root build/demo

test: setup lint
	@$(PYTEST)

test-long: setup $(VENV)/.stamp-spark
	@$(PYTEST) --no-loadscope-reorder -m long

# What some tests use and pip does not bring; needs root. Where it is missing, those tests are skipped and say so.
test-tools:
	@command -v java >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless >/dev/null)
	@command -v chromium >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null)
	@command -v hey >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends hey >/dev/null)
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || (echo "run: $(BIN)/ruff format ." && exit 1)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

setup: $(VENV)/.stamp-hap $(VENV)/.stamp-triton

$(VENV)/.stamp-python:
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'error: Python 3.11 or newer is needed, found ' + sys.version.split()[0] + '; name another one with make PYTHON=python3.12')"
	@$(PYTHON) -c "import platform, sys; ok = platform.system() == 'Linux' and platform.machine() in ('x86_64', 'aarch64'); sys.exit(0 if ok else 'error: hap runs on Linux x86_64 or aarch64, this is ' + platform.system() + ' ' + platform.machine() + '; use a Linux machine or container')"
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.stamp-hap: $(VENV)/.stamp-python pyproject.toml constraints.txt
	@echo "installing hap and what it needs (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Half a gigabyte that only the tests of that engine need.
$(VENV)/.stamp-spark: $(VENV)/.stamp-hap
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,spark]'
	@touch $@

$(VENV)/.stamp-triton: $(VENV)/.stamp-hap triton_repo/requirements.txt
	@$(BIN)/hapctl serve --install
	@touch $@

clean:
	rm -rf build
