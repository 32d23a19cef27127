# Needs Python 3.11 to 3.14, make and a package index; everything else is set up here.
#   make run     set up what is missing, then serve on http://localhost:$PORT (8080)
#   make test    set up what is missing, then run every test
#   make model   build model/ (MODEL=…, REVISION=…, EFFORT=…); nothing changed: does nothing
#   make image   build the container image (MODEL=…, REVISION=…, EFFORT=…, PRECISION=…) with Docker
PYTHON ?= python3
MODEL ?=
REVISION ?=
EFFORT ?=
PRECISION ?=
PYTHON_IMAGE ?=
IMAGE ?= embedding-api
# FOLDER=SOURCE of each model to compare recipes on
RECIPES ?= model=stand-in
# Another program than Docker: what it must understand is in tests/image/container.py.
CONTAINER_BUILD ?= docker build
# PyTorch's own index of CPU builds, beside the package index that pip is set up with.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

venv := .venv
bin := $(venv)/bin
# The locks are complete, so pip resolves nothing (--no-deps).
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps
# black has no place in setup.cfg, and skips folders called build by default
black := $(bin)/black --line-length 120 --exclude '/(\.git|\.venv|\.cache|model)/'
out := $(or $(MODEL_DIR),model)
build_args := $(if $(MODEL),--model '$(MODEL)') $(if $(REVISION),--revision '$(REVISION)') $(if $(EFFORT),--effort '$(EFFORT)') --out '$(out)'
image_args := $(foreach name,MODEL REVISION EFFORT PRECISION PYTHON_IMAGE PIP_INDEX_URL TORCH_INDEX HF_ENDPOINT,$(if $($(name)),--build-arg $(name)='$($(name))'))

# pip must not run twice at once in one environment
.NOTPARALLEL:
.PHONY: run test model image image-check image-size image-start sbom audit bench soak recipes lint format lock pins clean

# A sealed model folder is served as it is, whatever model it holds.
run: $(venv)/.runtime $(venv)/.build
	@if [ -n '$(MODEL)' ] || [ ! -f '$(out)/manifest.json' ]; then \
		$(bin)/python -m build $(build_args) --fallback stand-in; fi
	@LOG_FORMAT="$${LOG_FORMAT:-text}" exec $(bin)/gunicorn

model: $(venv)/.runtime $(venv)/.build
	@$(bin)/python -m build $(build_args)

test: $(venv)/.runtime $(venv)/.build $(venv)/.test
	$(bin)/python -m pytest -n 4 -m 'not alone'
	$(bin)/python -m pytest -m alone

image:
	$(CONTAINER_BUILD) -t $(IMAGE) $(image_args) .

# The list of what is in the image, sbom.cdx.json (CycloneDX); takes the variables that `make image` was given.
sbom:
	$(CONTAINER_BUILD) -t $(IMAGE)-sbom $(image_args) --target sbom --output=type=local,dest=. .

# Compares the image with sbom.cdx.json, too: `make sbom` comes first.
image-check: $(venv)/.runtime $(venv)/.build $(venv)/.test
	IMAGE='$(IMAGE)' PYTHON_IMAGE='$(PYTHON_IMAGE)' $(bin)/python -m pytest tests/image

image-size image-start: $(venv)/.runtime $(venv)/.test
	@IMAGE='$(IMAGE)' $(bin)/python -m tests.image $(@:image-%=%)

audit:
	@sh requirements/audit

bench: $(venv)/.runtime $(venv)/.build $(venv)/.test
	TORCH_INDEX='$(TORCH_INDEX)' $(bin)/python -m tools.bench

# Twenty minutes at full load; SECONDS=… for another time.
soak: $(venv)/.runtime $(venv)/.build $(venv)/.test
	$(bin)/python -m tools.bench.soak

# The tables of docs/quantization.md: every recipe that was tried, on two models.
recipes: $(venv)/.runtime $(venv)/.build $(venv)/.test
	$(bin)/python -m tools.bench.recipes $(RECIPES)

lint: $(venv)/.runtime $(venv)/.build $(venv)/.test
	$(black) --check --quiet .
	$(bin)/isort --check --quiet .
	$(bin)/flake8
	$(bin)/mypy

format: $(venv)/.test
	$(black) --quiet .
	$(bin)/isort --quiet .

lock: $(venv)/.test
	PATH="$(CURDIR)/$(bin):$$PATH" TORCH_INDEX='$(TORCH_INDEX)' requirements/lock

# Digests of the images and the commit of the default model, as they are today.
pins:
	@$(PYTHON) requirements/pins.py

clean:
	rm -rf $(venv) model .cache sbom.cdx.json

$(venv)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		|| { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 to 3.14 is needed, e.g. make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(venv) || { rm -rf $(venv); exit 1; }

$(venv)/.runtime: requirements/runtime.txt requirements/sdist.txt | $(venv)/bin/python
	$(install) --require-hashes -r requirements/sdist.txt
	$(install) --require-hashes --no-build-isolation -r requirements/runtime.txt
	@touch $@

$(venv)/.build: requirements/build.txt requirements/torch.txt | $(venv)/bin/python
	$(install) --require-hashes -r requirements/build.txt
	@TORCH_INDEX='$(TORCH_INDEX)' sh requirements/torch $(install)
	@touch $@

$(venv)/.test: requirements/test.txt | $(venv)/bin/python
	$(install) --require-hashes -r $<
	@touch $@
