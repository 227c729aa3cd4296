# make figures   every notebook run headless; figures/ and the claims ledger, where a number has changed
# make test      lint, unit tests, and each notebook run once: its outputs, figures and claims against the stored ones
# make lab       JupyterLab in notebooks/
# make env       only the virtual environment .venv (all other targets make it when it is needed)
# make integrations  DeepInverse, torchvision, the hub and nbgrader with the default torch, in .venv-integrations (6 GB)
# make stress    what takes long: damaged files, 20 kills of each command, hostile surroundings
# make mutants   40 small changes of the mathematics in each package, one at a time: which of them does no test notice?
# make course    the students' copies of the exercises anew from their source
# make notebooks run the committed notebooks anew in place (after a change of the library)
# make book      the notebooks as an HTML site in _book/html that needs no network to read
# make lint      ruff only             make clean     remove caches, not .venv
#
# Needs: make and any Python >= 3.11. Choose one with  make env PYTHON=/path/to/python3.12
.PHONY: help env figures test integrations stress mutants lab notebooks course book lint clean
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.gnclib-ready
INTEGRATIONS := .venv-integrations
NOTEBOOKS := notebooks/*.ipynb notebooks/exercises/*.ipynb
export JUPYTER_PREFER_ENV_PATH := 1

help:
	@sed -n 's/^# \{0,1\}//; 1,/^$$/p' Makefile

env: $(STAMP)

# Built anew only when the declared packages change.
$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	try() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	found=; \
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
		if try "$$python"; then found=$$python; break; fi; \
		if [ "$$python" = "$(PYTHON)" ]; then \
			echo "make: PYTHON=$$python is no Python >= 3.11 with the venv module" >&2; exit 1; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "make: no Python >= 3.11 with venv and pip was found." >&2; \
		echo "make: install one (Debian/Ubuntu: apt install python3-venv) or name it: make env PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "building $(VENV) with $$("$$found" --version) ($$found)"; \
	[ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null || { rm -rf $(VENV); "$$found" -m venv $(VENV); }; \
	echo "installing packages (1.5 GB) into $(VENV): two minutes or more, without a word"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[notebooks,test,compare,arb]'
	@touch $@

figures: $(STAMP)
	$(BIN)/gnc figures

# Notebooks first: they take longest, and two workers share what is left.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p tests.suite.whole -n 2 --dist loadscope --no-loadscope-reorder \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=300 -m "not stress" $(NOTEBOOKS) tests

stress: $(STAMP)
	GNC_KILLS=20 $(BIN)/python -m pytest -rP -m stress tests

mutants: $(STAMP)
	$(BIN)/python benchmarks/mutants.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(STAMP)
	$(BIN)/gnc notebooks

# Sphinx lives in an environment of its own: the versions it needs are nobody else's business.
book: $(STAMP)
	@[ -x .venv-book/bin/sphinx-build ] || $(BIN)/python -m venv .venv-book
	.venv-book/bin/python -m pip install --quiet --disable-pip-version-check -r notebooks/book/requirements.txt
	rm -rf _book
	.venv-book/bin/sphinx-build -q -W --keep-going -c notebooks/book -d _book/doctrees notebooks _book/html
	@rm -rf _book/html/_sources _book/doctrees _book/jupyter_execute
	@echo "open _book/html/index.html"

course: $(STAMP)
	$(BIN)/gnc course

# No skip may remain: what is skipped elsewhere, because a package is missing, runs here.
integrations: $(INTEGRATIONS)/.gnclib-ready
	@set -eu; $(INTEGRATIONS)/bin/python -m pytest tests/integrations tests/foe/test_hub.py tests/course/test_nbgrader.py \
		--junitxml=$(INTEGRATIONS)/report.xml; \
	if grep -q '<skipped' $(INTEGRATIONS)/report.xml; then echo "make: a test was skipped, see above" >&2; exit 1; fi

# The default torch and the torchvision that fits it; everything else as in constraints.txt.
$(INTEGRATIONS)/.gnclib-ready: $(STAMP)
	$(BIN)/python -m venv $(INTEGRATIONS)
	grep -v -e '^torch==' -e '^torchvision==' constraints.txt > $(INTEGRATIONS)/constraints.txt
	@echo "installing packages (6 GB) into $(INTEGRATIONS): four minutes or more, without a word"
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check -c $(INTEGRATIONS)/constraints.txt \
		torch==2.14.1 torchvision==0.29.1 -e '.[test,notebooks,deepinv,napari,bioimageio,hub,course]'
	@touch $@

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir=notebooks

clean:
	rm -rf build dist _book .pytest_cache .ruff_cache .gnc-*
	find gnclib tests notebooks -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
