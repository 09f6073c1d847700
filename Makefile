# make demo        install into .venv and run the whole pipeline on the demo world
# make install    only install
# make test       install what the tests need, then lint, types and tests
# make quick      the tests that run no pipeline, in a minute
# make faults     the faults that a run may meet, all of them
# make deps       write into dvc.yaml what follows from the code
# make table1     train and judge the methods that the paper compares with, on three seeds
# make table2     measure what each module of the method adds, on three seeds of the demo world
# make photographs  the ladder on real photographs: docs/photographs.md; SEEDS=0,1,2 for three trainings
# make bench      measure the pipeline against the bare model: docs/performance.md
# make rehearsal  run the paper's networks, with random weights, on drawn JPEGs of VOC's sizes

PYTHON ?= python3
VENV := .venv
SEEDS ?= 0
MARKED ?= not long
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: demo install test quick faults lint deps table1 table2 photographs bench rehearsal

demo: $(VENV)/installed .dvc/config.local
	dvc repro
	@ccd ladder

install: $(VENV)/installed .dvc/config.local

test: $(VENV)/installed-dev lint
	pytest -n auto -m "$(MARKED)"

quick: $(VENV)/installed-dev
	pytest -n auto -m "not pipeline and not slow and not long"

faults: $(VENV)/installed-dev
	pytest -n auto $(ONLY) tests/faults

deps: $(VENV)/installed
	python -m stages.command.deps

lint: $(VENV)/installed-dev
	ruff check
	ruff format --check
	mypy

table1: $(VENV)/installed .dvc/config.local
	python -m experiments.table1

table2: $(VENV)/installed .dvc/config.local
	python -m experiments.ablate table2

photographs: $(VENV)/installed .dvc/config.local
	python -m experiments.photographs --seeds $(SEEDS)

bench: $(VENV)/installed .dvc/config.local
	python -m bench

rehearsal: $(VENV)/installed
	CCD_BATCH=4 python -m experiments.rehearsal

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' \
	  || { echo "Python 3.11.4 or newer is needed; make PYTHON=/path/to/it demo"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# a tree without git, as from a source archive: tell DVC, which otherwise refuses. Where git fails
# for another reason, as over who owns the folder, it says so itself
.dvc/config.local:
	@if said=$$(LC_ALL=C git rev-parse --git-dir 2>&1); then touch $@; \
	  elif [ -e .git ]; then echo "$$said"; exit 1; \
	  else printf '[core]\n    no_scm = true\n' > $@; fi
