# Every target makes or mends .venv first. Extra words for the tool behind a target go in ARGS:
#   make lab ARGS="--no-browser --port 9999"      make test ARGS="notebooks/06_finetune_last_layer.ipynb"
PYTHON ?= python3
PY := .venv/bin/python
FORKED := $(if $(filter Linux,$(shell uname)),-p tests.tools.fast)
RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

lab: .venv/ready ## open a copy of the lessons of your own, in my/, in JupyterLab, on this machine only
	$(PY) -m helpers.lessons.lab my $(ARGS)

test: .venv/ready ## run the tests of helpers, strict nbval over every notebook, and the rules for notebooks
	$(PY) -m pytest $(ARGS)

quick: .venv/ready ## compare every notebook as nbval does, with kernels forked from one process that holds torch (Linux)
	$(PY) -m pytest -p tests.tools.fast $(or $(ARGS),notebooks)

test-lab: .venv/ready ## run every notebook in JupyterLab in Chromium, as a student does
	$(PY) -m pytest -n 0 -m "lab or not lab" tests/test_lab.py $(ARGS)

site: .venv/site ## build the pages to read, from the stored outputs, in build/site
	rm -rf build/site
	$(PY) -m sphinx -qEW --keep-going -c docs -d build/doctrees . build/site

test-site: site ## open every page of it in Chromium: links, pictures, keyboard, screen readers, no request elsewhere
	$(PY) -m tests.tools.site

save: .venv/ready ## re-execute the notebooks and write them in the one form that is committed
	$(PY) -m tests.tools.lessons $(ARGS)
	$(PY) -m tests.tools.exercises

lint: .venv/ready ## check style, format, types and workflow files
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/zizmor --offline --quiet .github/workflows

stable: .venv/ready ## compare the lessons' outputs with two threads and plain instructions, and with AVX2 instructions
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ATEN_CPU_CAPABILITY=default $(PY) -m pytest $(FORKED) notebooks
	ATEN_CPU_CAPABILITY=avx2 $(PY) -m pytest $(FORKED) notebooks

matrix: .venv/ready ## run everything on the oldest and newest versions, other threads, instruction sets and settings
	$(PY) -m tests.tools.matrix $(ARGS)

mutate: .venv/ready ## delete or flip statements of the lessons at random, and print what no output noticed
	$(PY) -m tests.tools.mutate $(ARGS)

mutate-helpers: .venv/ready ## the same for helpers, by mutmut: make mutate-helpers ARGS="helpers.memory*"
	$(PY) -m pip install --quiet 'mutmut>=3.8,<4'
	$(PY) -m mutmut run $(ARGS)
	$(PY) -m mutmut results

bench: .venv/ready ## measure helpers, then the lessons' verification, beside other tools (those of the extra 'bench')
	$(PY) -m tests.tools.bench
	$(PY) -m tests.tools.bench_notebooks $(ARGS)

dist: .venv/ready ## build the wheel and the source archive in build/dist, and check what is in them
	$(PY) -m pip install --quiet 'build>=1.2,<2' 'twine>=6,<8'
	$(PY) -m tests.tools.handed_out

click: .venv/ready ## run every state of the network that is frozen with a click, and write its page and picture
	$(PY) -m tests.tools.click

week: .venv/ready ## play a learner's week, from a fresh clone and from the wheel: start, guess, answer, update, all lessons
	$(PY) -m pip install --quiet 'build>=1.2,<2'
	$(PY) -m tests.tools.week
	$(PY) -m tests.tools.week all

weights: .venv/ready ## pretrain the small network of helpers.lessons.digits again
	$(PY) -m helpers.lessons.digits

# Ready means: newer than pyproject.toml, and its Python finds the helpers of this checkout (not of a moved or copied one).
ifneq ($(shell exec 2>/dev/null; $(PY) -I -c 'import importlib.util as u; print(u.find_spec("helpers").origin)'),$(CURDIR)/helpers/__init__.py)
.PHONY: .venv/ready
endif
.venv/ready: pyproject.toml
	@{ $(PY) $(RECENT) && $(PY) -m pip --version; } >/dev/null 2>&1 || { \
	  $(PYTHON) $(RECENT) || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }; \
	  echo "Making .venv"; $(PYTHON) -m venv --clear .venv; }
	$(PY) -m pip install --editable '.[lessons,test,ci]'
	@touch $@

.venv/site: .venv/ready
	$(PY) -m pip install --editable '.[site]'
	@touch $@

.PHONY: help lab test quick test-lab site test-site save lint stable matrix mutate mutate-helpers bench dist click week weights
