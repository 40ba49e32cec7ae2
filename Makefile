# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check conformance tla mutations nemesis mixed soak hunt kills bench pins clean help

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv with the pinned, hashed dependencies and this project

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: setup ## the main job on real processes: failover, growing tokens, a refused stale write
	$(BIN)/lockd demo

test: setup ## every test, with real PostgreSQL, MariaDB and Valkey servers
	$(BIN)/python -m pytest tests

check: setup ## ruff, strict mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

conformance: setup ## others' data for Raft and the linearizability checker; DATA=folder for another than ../shared
	$(BIN)/python -m tests.conformance $(if $(DATA),--data $(DATA))

tla: setup ## recorded runs of the core against etcd's TLA+ specification; SPEC=folder with etcdraft.tla, SEEDS=0-39
	$(BIN)/python -m tests.tla $(if $(SPEC),--spec "$(SPEC)") $(if $(SEEDS),--seeds $(SEEDS))

mutations: setup ## bugs put into a copy on purpose, each of which a test must notice (ONLY=text for some)
	$(BIN)/python -m tests.mutations $(if $(ONLY),--only "$(ONLY)")

nemesis: setup ## real nodes under faults for SECONDS=n, histories checked
	$(BIN)/python -m tests.nemesis --seconds $(or $(SECONDS),60)

mixed: setup ## fifty clients of all kinds while leaders are killed, for SECONDS=n (default 120)
	$(BIN)/python -m tests.nemesis.mixed --seconds $(or $(SECONDS),120)

soak: setup ## the simulated cluster: as many seeds as fit; SECONDS=n (default 60), FIRST=seed
	$(BIN)/python -m tests.sim --soak $(or $(SECONDS),60) $(if $(FIRST),--first $(FIRST))

hunt: setup ## races of old and new holders in every kind of storage, SECONDS=n for each (default 60)
	$(BIN)/python -m tests.storage.hunt --seconds $(or $(SECONDS),60) --seeds 0-99999

kills: setup ## the scheduler's active process dies: simulated (SEEDS=0-299), 50 real deaths, ten rolling restarts
	$(BIN)/python -m tests.scheduler.chaos --seeds $(or $(SEEDS),0-299) --db sqlite
	$(BIN)/python -m tests.scheduler.chaos --seeds $(or $(SEEDS),0-299) --db postgres
	$(BIN)/python -m tests.scheduler.kills --count 50 --office lockd
	$(BIN)/python -m tests.scheduler.kills --count 50 --office row
	$(BIN)/python -m tests.scheduler.rolling --restarts 10 --office lockd
	$(BIN)/python -m tests.scheduler.rolling --restarts 10 --office row

bench: setup ## the benchmarks, with machine and versions beside the figures
	$(BIN)/python -m benchmarks.acquire_release
	$(BIN)/python -m benchmarks.hand_over
	$(BIN)/python -m benchmarks.start_lateness
	$(BIN)/python -m benchmarks.fenced_sql
	$(BIN)/python -m benchmarks.fenced_redis
	$(BIN)/python -m benchmarks.fenced_objects
	$(BIN)/python -m benchmarks.fires
	$(BIN)/python -m benchmarks.failover

pins: ## rewrite constraints.txt from pyproject.toml (needs uv on the PATH)
	uv pip compile pyproject.toml --group dev --extra demo --extra redis --extra s3 --extra http --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet -o constraints.txt

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
