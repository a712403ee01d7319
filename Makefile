# Set-up, demonstration and tests. Everything goes into .venv; running a target again is quick.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --no-deps
INSTALLED := $(VENV)/.installed
REQUIREMENTS := $(filter-out %/mooncake.txt %/docs.txt,$(sort $(wildcard requirements/*.txt)))

export PIP_ROOT_USER_ACTION := ignore
# torch keeps caches in the home directory and fails where it cannot.
export HOME := $(shell test -w "$$HOME" && echo "$$HOME" || echo "$(CURDIR)/build/home")

.PHONY: install mooncake demo serve lint structure site format check test matrix clean

install: $(INSTALLED)

# pip is the last thing that venv puts in place: where it is missing, another try is due.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV) || { \
	  echo "cannot create $(VENV): install python3-venv, or name another interpreter: make PYTHON=..."; \
	  exit 1; }

# torch first and by the name of its CPU build; where no index offers that, torch as it comes.
$(INSTALLED): $(REQUIREMENTS) setup.py pyproject.toml | $(VENV)/bin/pip
	@echo "installing torch (about 200 MB)"
	$(PIP) -r requirements/torch-cpu.txt || $(RUN) -m pip install torch==2.13.0
	@echo "installing SGLang and what it needs on a CPU (about 150 packages, some minutes)"
	$(PIP) -r requirements/cpu.txt -r requirements/dev.txt
	$(PIP) --no-build-isolation --editable .
	@touch $@

# The second transfer engine: needs system libraries (Debian: libibverbs1, libnuma1, libcurl4).
mooncake: install
	$(PIP) -r requirements/mooncake.txt
	@$(RUN) -c "import mooncake.engine"

demo: install
	$(RUN) -m sglang_cdsp.demo

# A model with a pool: make serve MODEL=/models/llama PORT=30000 DP=4 FLAGS='--enable-metrics'.
# Without MODEL the demonstration's small checkpoint, and all that is written stays in build/.
PORT ?= 30000
DP ?= 2
SERVE = $(RUN) -m sglang_cdsp serve --port $(PORT) --dp-size $(DP)
SMALL := build/demo/checkpoint
SMALL_FLAGS := --max-total-tokens 20000 --enable-metrics --cdsp-allow-request-plans \
  --cdsp-plan-log build/serve/plans.jsonl --cdsp-cache build/serve --log-directory build/serve/logs

serve: install
ifneq ($(MODEL),)
	@$(SERVE) --model-path '$(MODEL)' $(FLAGS)
else
	@mkdir -p build/serve
	@$(RUN) -m sglang_cdsp.testing.checkpoint $(SMALL)
	@$(SERVE) --model-path $(SMALL) $(SMALL_FLAGS) $(FLAGS)
endif

# Style, types, and which part may import which.
lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .
	$(RUN) -m tests.structure.lint

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# What docs/structure.md says of modules and imports, from the code.
structure: install
	$(RUN) -m tests.structure.page

# Tests without servers run on workers, a file at a time; servers have the machine to themselves.
WORKERS ?= 2
ON_WORKERS := -n $(WORKERS) --dist loadfile
SLOWEST := --durations=15 --durations-min=3

# The documentation as a site, in build/site. A link that leads nowhere is an error.
site: $(VENV)/.site
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

$(VENV)/.site: requirements/docs.txt $(INSTALLED)
	$(PIP) --quiet -r requirements/docs.txt
	@touch $@

# A quick answer, under 3 minutes: no servers, nothing that imports SGLang once more.
check: lint
	$(RUN) -m pytest $(ON_WORKERS) -m "not serving and not slow and not gpu"

# Tests that need a GPU are skipped where there is none. On servers each question is asked once, of one
# way through the pool and one form of the server, and one of the folders with servers of their own is
# run, drawn anew by a seed that is printed: make test WAYS= runs everything, over an hour longer.
WAYS ?= --one-way=drawn
test: lint
	$(RUN) -m pytest $(ON_WORKERS) $(SLOWEST) -m "not serving"
	$(RUN) -m pytest $(SLOWEST) -m serving $(WAYS)

# Every way to die at every moment, and every family of models in both forms, on real servers: over
# an hour each. Cells whose results are in bench/results are not run again; MATRIX=--again runs all.
matrix: install
	$(RUN) -m bench.servers.matrix $(MATRIX)
	$(RUN) -m bench.servers.families $(filter --again,$(MATRIX))

# -- the newest tested SGLang, in an environment of its own ----------------------------------------

NEWEST := .venv-newest
NEWEST_RUN := $(NEWEST)/bin/python
NEWEST_PIP := $(RUN) -m pip --python $(NEWEST_RUN) --disable-pip-version-check install --no-deps
# What of it differs by release, and on real servers parity, aborts and features of one kind of plan.
# The controller in any order knows no release: it runs with the other one.
NEWEST_TESTS := tests/contract tests/controller tests/engine tests/transfer tests/protocol \
  tests/test_releases.py tests/test_checks.py tests/test_args.py tests/test_hooks.py \
  tests/platforms --ignore tests/platforms/test_stock_servers.py
NEWEST_SERVING := tests/serving/test_parity.py tests/serving/test_ends.py \
  tests/serving/test_features.py tests/serving/test_requests.py
NEWEST_SERVED := not forced_plan_alone and not turn and not planned

.PHONY: newest test-newest

newest: $(NEWEST)/.installed

$(NEWEST_RUN):
	$(PYTHON) -m venv --without-pip $(NEWEST)

# What newest.txt does not name is that of .venv, which comes after it on the path.
$(NEWEST)/.installed: requirements/newest.txt $(INSTALLED) | $(NEWEST_RUN)
	$(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$($(NEWEST_RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	$(NEWEST_PIP) -r requirements/newest.txt
	$(NEWEST_PIP) --no-build-isolation --editable .
	@touch $@

test-newest: newest
	$(NEWEST_RUN) -m pytest $(ON_WORKERS) $(SLOWEST) $(NEWEST_TESTS) -k "not AnyOrder"
	$(NEWEST_RUN) -m pytest $(SLOWEST) $(NEWEST_SERVING) -k "$(NEWEST_SERVED)"

clean:
	rm -rf $(VENV) $(NEWEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
