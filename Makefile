# make figures   every notebook run headless, every figure and the claims ledger in figures/
# make test      lint, unit tests, notebooks against their stored outputs, notebooks executed and clean
# make lab       JupyterLab in notebooks/
# make env       only the virtual environment .venv (all other targets make it when it is needed)
# make course    the students' copies of the exercises anew from their source
# make grade-check  nbgrader grades the exercises: in an environment of its own, .venv-course, beside .venv
# make stress    damaged files, kills and hostile surroundings, 20 kills of each command: some ten minutes
# make notebooks run the committed notebooks anew in place (after a change of the library)
# make book      the notebooks as an HTML site in _book/html that needs no network to read
# make lint      ruff only             make clean     remove caches, not .venv
#
# Needs: make and any Python >= 3.11. Choose one with  make env PYTHON=/path/to/python3.12
.PHONY: help env figures test stress lab notebooks course grade-check book lint clean
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.gnclib-ready
COURSE := .venv-course
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300
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
		-c constraints.txt -e '.[notebooks,test,compare,sweep,arb]'
	@touch $@

figures: $(STAMP)
	$(BIN)/gnc figures

test: lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -q $(NBVAL) notebooks/*.ipynb notebooks/exercises/*.ipynb
	$(BIN)/gnc notebooks --check
	$(BIN)/gnc course --check

stress: $(STAMP)
	GNC_KILLS=20 $(BIN)/python -m pytest -rP tests/io/test_fuzz.py tests/io/test_fuzz_images.py tests/io/test_faults.py tests/io/test_kills.py

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

grade-check: $(COURSE)/.gnclib-ready
	$(COURSE)/bin/python -m pytest tests/course/test_nbgrader.py

# The extra "course" only: everything else is that of $(VENV), which it sees.
$(COURSE)/.gnclib-ready: $(STAMP)
	$(BIN)/python -m venv $(COURSE)
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$site")')" \
		> "$$($(COURSE)/bin/python -c "$$site")/gnclib-environment.pth"
	$(COURSE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$$($(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print(*extras["course"])')
	@touch $@

lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir=notebooks

clean:
	rm -rf build dist _book .pytest_cache .ruff_cache .gnc-*
	find gnclib tests notebooks -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
