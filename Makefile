# make train   trains PgM on real digit images and says where the report is
# make test    runs the tests that this machine can run
# make test-all  runs them, and those marked slow: the same on more GPU targets, dtypes and draws
# make test-portable  runs the numeric tests again as other processors would: other instruction sets, orders and threads
# make test-kill  ends runs by SIGKILL 200 times and holds what comes out against runs that were left alone
# make bench   measures what this machine can run and writes benchmarks/results/
# make lint   checks how Python and C++ are written
# make types  checks the types of the ops, the modules and the optimizers
# All prepare .venv themselves, once.

PYTHON ?= python3
READY := .venv/.ready
LINT := .venv/.lint
# a thread per process: as many processes as cores share them
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadgroup
# tests start processes of their own, each of which would compile every module anew
export PYTHONDONTWRITEBYTECODE :=
OUT ?= runs/digits-$(shell date +%Y%m%d-%H%M%S)

.PHONY: train test test-all fuzz test-kill test-portable bench lint types clean

train: $(READY)
	.venv/bin/pgm-fast train --method pgm --data digits --out $(OUT)

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

test-portable: $(READY)
	.venv/bin/python tools/test_portable.py

fuzz: $(READY)
	OMP_NUM_THREADS=1 .venv/bin/python tools/fuzz.py --count 20000

test-kill: $(READY)
	OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= .venv/bin/python tests/train/kill_runs.py --kills 200

bench: $(READY)
	.venv/bin/pgm-fast bench

lint: $(LINT)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(wildcard csrc/*.* csrc/*/*)

# after $(READY): types of torch are read from where it is installed
types: $(READY) $(LINT)
	.venv/bin/basedpyright --pythonpath .venv/bin/python

# by minor version: another one formats, or infers, otherwise
$(LINT): Makefile
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet "ruff>=0.17,<0.18" "clang-format>=23,<24" "basedpyright>=1.40,<1.41"
	touch $(LINT)

$(READY): pyproject.toml setup.py constraints.txt tools/setup_venv.py $(wildcard csrc/*.cpp csrc/*/*)
	$(PYTHON) tools/setup_venv.py
	touch $(READY)

clean:
	rm -rf .venv build *.egg-info
