# A menu of a few words; `make` prints it. The environment is made on first use, again when its inputs change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# The pip that comes with Python 3.11 takes twice as long, and compiles on one core.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: menu run test sync lab serve clean
.DEFAULT_GOAL := menu

menu:
	@echo "make run [ARGS=...]  the whole path: data, training, gate, bundle; ARGS are Hydra overrides"
	@echo "make test            all tests, and the cells of the notebooks"
	@echo "make sync            notebooks -> modules, notebooks cleaned"
	@echo "make lab             JupyterLab on the notebooks"
	@echo "make serve [ARGS=..] serve the champion"
	@echo "make clean           remove the environment and what tests and builds left"

.venv/.stamp: constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || \
	  { echo "mlproj needs Python 3.11.5 or newer, found '$(PYTHON)'; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making .venv (two or three minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) 'pip==26.3'
	@$(PIP) --no-compile -c constraints.txt -e '.[all]'
	@$(BIN)/python -m compileall -qq -j 0 $(CURDIR)/.venv/lib || true
	@touch $@

run: .venv/.stamp
	@$(BIN)/mlproj run $(ARGS)

test: .venv/.stamp
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests nbs $(ARGS)

sync: .venv/.stamp
	@$(BIN)/mlproj sync $(ARGS)

lab: .venv/.stamp
	@$(BIN)/python -c 'from mlproj.doctor import register_kernel; register_kernel()'
	@$(BIN)/jupyter lab nbs/examples/flights.ipynb $(ARGS)

serve: .venv/.stamp
	@$(BIN)/mlproj serve $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
