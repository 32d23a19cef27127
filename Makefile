# `make help` lists the targets. Needs Python 3.11 to 3.14, make and a package index; everything else is set up here.
PYTHON ?= python3
MODEL ?=
REVISION ?=
EFFORT ?=
PRECISION ?=
PYTHON_IMAGE ?=
# Anything: the image has pyarrow, for the command `bulk`.
PARQUET ?=
IMAGE ?= embedding-api
# FOLDER=SOURCE of each model on which `make recipes` compares the recipes.
RECIPES ?= model=stand-in
# Another model folder, or a virtual environment, for `make compare`.
OTHER ?=
# Texts, vectors and options of `make bulk`.
IN ?=
OUT ?=
BULK ?=
# Data for `make tasks`; without any, what is at hand.
FILES ?=
# Command that builds the image; tests/image/container.py shows what another one than Docker must support.
CONTAINER_BUILD ?= docker build
# PyTorch's index of CPU builds; all other packages come from pip's own index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

venv := .venv
bin := $(venv)/bin
# --no-deps: the lock files are complete, so pip has nothing to resolve.
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps
# black does not read setup.cfg, and skips folders called build by default.
black := $(bin)/black --line-length 120 --exclude '/(\.git|\.venv|\.cache|model)/'
out := $(or $(MODEL_DIR),model)
build_args := $(if $(MODEL),--model '$(MODEL)') $(if $(REVISION),--revision '$(REVISION)') $(if $(EFFORT),--effort '$(EFFORT)') --out '$(out)'
image_args := $(foreach name,MODEL REVISION EFFORT PRECISION PARQUET PYTHON_IMAGE PIP_INDEX_URL TORCH_INDEX HF_ENDPOINT,$(if $($(name)),--build-arg $(name)='$($(name))'))

# Two pips must not run at once in one environment.
.NOTPARALLEL:
# `make` alone.
.DEFAULT_GOAL := help
.PHONY: help run test model bulk image image-check image-size image-start sbom audit bench soak recipes tasks compare lint format lock pins clean

help: ## list the targets
	@echo 'make TARGET [VARIABLE=VALUE …]'
	@sed -n 's/^\([a-z][a-z -]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  %-36s %s\n' "$$target" "$$text"; done

# A complete model folder is served as it is, whatever model it holds.
run: $(venv)/.runtime $(venv)/.build ## set up what is missing, then serve on http://localhost:$PORT (8080)
	@if [ -n '$(MODEL)' ] || [ ! -f '$(out)/manifest.json' ]; then \
		$(bin)/python -m build $(build_args) --fallback stand-in; fi
	@LOG_FORMAT="$${LOG_FORMAT:-text}" exec $(bin)/gunicorn

model: $(venv)/.runtime $(venv)/.build ## build model/, if it is not up to date (MODEL=…, REVISION=…, EFFORT=…)
	@$(bin)/python -m build $(build_args)

# The model is built first if there is none.
bulk: $(venv)/.runtime $(venv)/.parquet ## turn files of texts into a file of vectors (IN=FILE-OR-PATTERN, OUT=FILE, BULK="--id id")
	@[ -n '$(IN)' ] && [ -n '$(OUT)' ] || { echo 'IN and OUT are needed: make bulk IN=texts.jsonl OUT=vectors.parquet'; exit 1; }
	@[ -f '$(out)/manifest.json' ] || $(MAKE) model
	@LOG_FORMAT="$${LOG_FORMAT:-text}" $(bin)/python -m app.bulk '$(IN)' '$(OUT)' $(BULK)

test: $(venv)/.runtime $(venv)/.build $(venv)/.test ## set up what is missing, then run every test but those of the image
	$(bin)/python -m pytest -n 4 -m 'not alone'
	$(bin)/python -m pytest -m alone

image: ## build the container image with Docker (MODEL, REVISION, EFFORT, PRECISION, mirrors)
	$(CONTAINER_BUILD) -t $(IMAGE) $(image_args) .

# Takes the same variables as `make image`.
sbom: ## write sbom.cdx.json, the list of what is in the image; needs BuildKit (docker buildx)
	$(CONTAINER_BUILD) -t $(IMAGE)-sbom $(image_args) --target sbom --output=type=local,dest=. .

image-check: $(venv)/.runtime $(venv)/.build $(venv)/.test ## test the image, and compare it with sbom.cdx.json (after make sbom)
	IMAGE='$(IMAGE)' PYTHON_IMAGE='$(PYTHON_IMAGE)' $(bin)/python -m pytest tests/image

image-size image-start: $(venv)/.runtime $(venv)/.test ## measure the image's size, and its start
	@IMAGE='$(IMAGE)' $(bin)/python -m tests.image $(@:image-%=%)

audit: ## look the locked packages up in the database of known vulnerabilities
	@sh requirements/audit

bench: $(venv)/.runtime $(venv)/.build $(venv)/.test ## measure every figure of the documents, three quarters of an hour (PEERS=no: eight minutes)
	TORCH_INDEX='$(TORCH_INDEX)' $(bin)/python -m tools.bench
	@[ '$(PEERS)' = no ] || $(bin)/python -m tools.bench.engines
	$(bin)/python -m tools.bench.bulk

soak: $(venv)/.runtime $(venv)/.build $(venv)/.test ## twenty minutes at full load (SECONDS=…): memory must not grow
	$(bin)/python -m tools.bench.soak

recipes: $(venv)/.runtime $(venv)/.build $(venv)/.test ## measure every quantization recipe, for docs/quantization.md (RECIPES=FOLDER=SOURCE)
	$(bin)/python -m tools.bench.recipes $(RECIPES)

tasks: $(venv)/.runtime $(venv)/.build ## measure similarity, search and translations, INT8 beside FP32 (FILES=…)
	@$(bin)/python -m tools.tasks $(FILES) --model '$(out)'

compare: $(venv)/.runtime ## by how much vectors differ from those of another folder or environment (OTHER=folder-or-venv)
	@[ -n '$(OTHER)' ] || { echo 'OTHER is needed: another model folder, or a virtual environment'; exit 1; }
	@$(bin)/python -m tools.compare '$(OTHER)' --model '$(out)'

lint: $(venv)/.runtime $(venv)/.build $(venv)/.test ## check with black, isort, flake8 and mypy
	$(black) --check --quiet .
	$(bin)/isort --check --quiet .
	$(bin)/flake8
	$(bin)/mypy

format: $(venv)/.test ## format with black and isort
	$(black) --quiet .
	$(bin)/isort --quiet .

lock: $(venv)/.test ## write requirements/*.txt anew from the .in files
	PATH="$(CURDIR)/$(bin):$$PATH" TORCH_INDEX='$(TORCH_INDEX)' requirements/lock

pins: ## write today's digests of the base images and the default model's commit
	@$(PYTHON) requirements/pins.py

clean: ## remove everything that the other targets have made
	rm -rf $(venv) model .cache sbom.cdx.json

$(venv)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 to 3.14 is needed, e.g. make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(venv) || { rm -rf $(venv); exit 1; }

$(venv)/.runtime: requirements/runtime.txt requirements/sdist.txt | $(venv)/bin/python
	$(install) --require-hashes -r requirements/sdist.txt
	$(install) --require-hashes --no-build-isolation -r requirements/runtime.txt
	@touch $@

$(venv)/.build: requirements/build.txt requirements/data.txt requirements/torch.txt | $(venv)/bin/python
	$(install) --require-hashes -r requirements/build.txt -r requirements/data.txt
	@TORCH_INDEX='$(TORCH_INDEX)' sh requirements/torch $(install)
	@touch $@

$(venv)/.parquet: requirements/parquet.txt | $(venv)/bin/python
	$(install) --require-hashes -r $<
	@touch $@

$(venv)/.test: requirements/test.txt $(venv)/.parquet | $(venv)/bin/python
	$(install) --require-hashes -r $<
	@touch $@
