# `make` alone lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# What Python compiles is kept, for hundreds of Ansible runs, but not beside the sources.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
# The tests' Ansible reads this checkout's settings wherever it is started from.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

VENV := .venv/.run
DEV := .venv/.dev

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- what a user runs ---------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV) ## Bring the lab up, converge ctid_921, show an answer from its model
	@tools/demo

.PHONY: lab-up lab-down lab-status
lab-up: ## Start the stand-in Proxmox node on this machine
	@lab/lab up

lab-down: ## Remove the lab and all that it installed
	@lab/lab down
	@tools/environment remove-packages

lab-status: ## Say what of the lab is there
	@lab/lab status

# --- tests --------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(DEV) ## All tests (what CI runs)
	@tools/side_by_side '$(MAKE) --no-print-directory test-unit test-build test-awx' \
		'$(MAKE) --no-print-directory test-lint test-sanity'
	@$(MAKE) --no-print-directory test-lab test-molecule
	@echo "All tests passed."

.PHONY: test-unit test-lint test-sanity test-build test-awx test-lab test-molecule test-full
test-unit: $(DEV) ## Pure code, in seconds
	@tools/step "unit tests" python -m pytest -m "not lab" tests/unit lab/tests

test-lint: $(DEV) ## ansible-lint at the production profile, ruff
	@tools/step "ruff" ruff check .
	@tools/step "schema" tools/schema --check
	@tools/step "licences" reuse lint --quiet
	@tools/step "changelog" antsibull-changelog lint
	@tools/step "ansible-lint" ansible-lint --offline --strict --profile production

test-sanity: $(DEV) ## ansible-test sanity
	@tools/step "ansible-test sanity" tools/sanity

test-build: $(DEV) ## The collection archive holds what it should
	@tools/step "collection build" python -m pytest -m "not full" tests/archive

test-awx: $(DEV) ## AWX as code on a stand-in for its API, the execution environment
	@tools/step "AWX" python -m pytest -m "not full" tests/awx

# Three streams at the same time; each file has CTIDs of its own. What is the whole node's (another release of Proxmox VE,
# the lab itself) is in the first one only.
lab-tests = $(foreach name,$(1),$(wildcard tests/lab/test_$(name).py))
SERVERS := $(call lab-tests,benchmark* certificate* gpu_check model_* nvidia two* verify watchdog)
OTHERS := $(call lab-tests,adopt awx* connection declaration docs models refuse status vllm* waves)
NODE := lab/tests $(filter-out $(SERVERS) $(OTHERS),$(wildcard tests/lab/test_*.py))
test-lab: $(DEV) lab-up ## The modules, the connection, the roles and the lab itself, on real containers
	@tools/step "lab tests" tools/side_by_side $(foreach files,NODE SERVERS OTHERS,'python -m pytest -m "lab and not full" $($(files))')

test-molecule: $(DEV) lab-up ## The lineage 900 → 901 → 921 from nothing, twice
	@tools/step "molecule default" molecule test -s default

test-full: test test-properties test-parser test-campaigns test-publish ## All tests, and what is too slow for every change

.PHONY: test-properties test-parser test-campaigns test-publish
test-publish: $(DEV) ## What a collection that is published has to pass, and each ansible-core that is supported
	@for core in 2.17 2.21; do \
		tools/step "ansible-test sanity, ansible-core $$core" tools/sanity --core $$core && \
		tools/step "ansible-test units, ansible-core $$core" tools/sanity --core $$core --units || exit 1; \
	done
	@tools/step "ansible-test units" tools/sanity --units
	@tools/step "documentation" antsibull-docs lint-collection-docs --plugin-docs .
	@tools/step "publishing" python -m pytest -m full tests/archive
	@tools/step "AWX on each ansible-core" python -m pytest -m full tests/awx

test-parser: $(DEV) ## What vLLM's own parsers make of 3,000 engine configs each
	@tools/parser_environment 0.32.0
	@tools/parser_environment 0.10.2
	@tools/step "parsers of vLLM" python -m pytest tests/parser

test-campaigns: $(DEV) lab-up ## Faults at every place, on real containers
	@tools/step "campaigns" python -m pytest -m "lab and full" tests/lab

# Those whose inputs are what Proxmox or a user may have written: 10,000 cases each.
PROPERTIES := pct_conf container_plan idmap firewall snapshot_plan
test-properties: $(DEV) ## The property tests with 10,000 generated cases each
	@HYPOTHESIS_PROFILE=full tools/step "property tests" python -m pytest \
		$(PROPERTIES:%=tests/unit/plugins/module_utils/test_%.py)
	@PHOENIX_FULL=1 tools/step "20,000 broken inventories" python -m pytest tests/unit/plugins/inventory/test_bad_input.py

.PHONY: bench
bench: $(DEV) ## Measure; NAME=… runs one group (first_run, second_run, task, containers, connection, inventory, stack, server, sandbox, renewal, certificate)
	@python tests/bench/bench.py $(if $(NAME),--name $(NAME))

.PHONY: gpu-proof
gpu-proof: $(VENV) ## On a machine with NVIDIA GPUs: serve what the role renders, check, measure; ARGS="--release /opt/vllm"
	@python tests/gpu/proof.py $(ARGS)

# --- the project itself -------------------------------------------------------------------------------------------

.PHONY: environment requirements lock schema pages docs build clean
environment: $(DEV) ## The pinned Python environment, tests included

$(VENV): requirements.txt
	@tools/environment install requirements.txt
	@touch $@

$(DEV): requirements-dev.txt
	@tools/environment install requirements-dev.txt
	@touch $@ $(VENV)

requirements: $(DEV) ## Pin again what requirements*.in ask for
	uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header -o requirements.txt requirements.in
	uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header -o requirements-dev.txt requirements-dev.in
	uv pip compile -q --universal --python-version 3.12 --no-annotate --no-header -c requirements-dev.txt -o requirements-ee.txt requirements-ee.in

lock: $(DEV) ## Lock a stack again: NAME=… (shipped, or a folder), TORCH_INDEX=… (mirror), FIND_LINKS=… (wheels)
	@test -n "$(NAME)" || { echo "make lock NAME=<a shipped stack or the folder of one of yours>" >&2; exit 2; }
	@python tools/lock_stack.py "$(NAME)" $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)") \
		$(if $(FIND_LINKS),--find-links "$(FIND_LINKS)")

schema: $(DEV) ## Write schemas/ again from the table of keys, the roles' READMEs from their argument specs
	tools/schema
	tools/role_readmes

pages: $(DEV) ## Write the pages again that are made from the code (docs/support.md, docs/json.md)
	tools/pages

docs: $(DEV) ## The documentation as a site, in build/docs/html
	tools/docs

build: $(VENV) ## The collection archive, in build/
	ansible-galaxy collection build --force --output-path build

clean: ## Remove what was made in the checkout (not the lab)
	rm -rf .venv .cache build
