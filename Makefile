PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# One thread a worker: two workers share two cores. Tests start some tens of Pythons, which find .ci/start first. Each
# worker keeps to its half while there is any, as tests of one file share trainings.
PYTEST := OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/.ci/start $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
FLOORS ?= .venv/floors

.PHONY: help demo gallery chromium test fast test-cluster test-image test-ray floors faults matrix clients licences site lint format bench bench-gpu bench-peers clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

# Torch goes in by itself first, so that a local CPU build is taken where pip is set up with one.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) -e '.[dev]'
	@touch $@

# Apart from the environment, because others import them wherever they find them, which slows every start.
# deepspeed goes in as Python alone, with those of its dependencies that the environment does not have.
DEEPSPEED := deepspeed==0.19.8 annotated-types einops hjson msgpack ninja psutil py-cpuinfo pydantic pydantic_core \
	typing-inspection
# The reference for curvature, the same way: what it needs to be imported, no more.
CURVLINOPS := curvlinops-for-pytorch==3.0.1 linear_operator einops einconv opt_einsum
# Physics-informed networks, whose inputs are a class of tensors of their own; torch and Lightning are there.
PINA := pina-mathlab==0.3.2.post2610 torch_geometric==2.8.1 requests==2.34.2 urllib3==2.8.0 charset_normalizer==3.5.3 \
	certifi idna xxhash==4.1.0 psutil
.venv/.peers: $(READY)
	@echo "Setting up .venv/peers (once)"
	@$(PIP) --target .venv/peers transformers==5.24.0 || echo "transformers cannot be had: its layers are not tested"
	@DS_BUILD_OPS=0 $(PIP) --target .venv/peers --no-deps --no-build-isolation $(DEEPSPEED) \
		|| echo "deepspeed cannot be had: its strategy is not tested"
	@$(PIP) --target .venv/peers --no-deps $(CURVLINOPS) \
		|| echo "curvlinops cannot be had: curvature is not compared with it"
	@$(PIP) --target .venv/peers --no-deps $(PINA) || echo "pina cannot be had: its trainings are not tested"
	@touch $@

demo: $(READY) ## Train one model with AdamW, SOAP and Muon, and plot the curves
	@$(BIN)/python -m examples.demo

# Some minutes each. FIGURES="laplace saddle" are some of them.
FIGURES ?= byte_lm image_classifier autoencoder molecules forecasting laplace saddle spectrum resume pinn pinn_burgers
gallery: $(READY) ## Train all that docs/gallery shows, and draw its pictures again
	@for figure in $(FIGURES); do echo "== $$figure"; OMP_NUM_THREADS=1 $(BIN)/python -m \
		examples.gallery.$${figure%_burgers} $$(test $$figure = $${figure%_burgers} || echo --equation burgers) \
		--out docs/gallery/$$figure.png > examples/gallery/printed/$$figure.txt || exit 1; \
		cat examples/gallery/printed/$$figure.txt; done

# Reports are looked at in it; without it (no apt-get, no rights, no network) those tests are skipped, and say so.
chromium: ## Install the browser that tests look at reports with, where it is not there
	@command -v chromium >/dev/null || { echo "Installing chromium (once)"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| echo "chromium cannot be had: reports are not looked at"

test: lint chromium .venv/.peers ## Lint, type-check and run the whole test suite
	@$(PYTEST) --ignore tests/cluster
	@$(MAKE) --no-print-directory test-cluster

fast: $(READY) ## Run the everyday tests: all but the slow ones
	@$(PYTEST) --ignore tests/cluster -m "not slow"

# They need root, network namespaces and Debian's packages; what cannot run here is skipped, and says why.
test-cluster: $(READY) ## Test on a real SLURM of two nodes, and over two hosts of a network
	@$(PYTEST) --dist loadfile -rs --ignore tests/cluster/test_image.py tests/cluster

# By docker/check.sh, which can be run alone. It takes some minutes, and is no part of the others.
test-image: $(READY) ## Build the image without a Docker engine, and test it
	@$(PYTEST) -n 0 -rs tests/cluster/test_image.py

# Ray and what its training needs, half a gigabyte: in a folder that nothing else looks into.
RAY := ray==2.60.0 msgpack==1.2.4 protobuf==7.36.2 pandas==3.1.1 pyarrow==26.0.1 pydantic==2.14.4 pydantic_core==2.50.5 \
	annotated-types==0.8.0 typing-inspection==0.4.5 python-dateutil six
.venv/ray/.ready: $(READY)
	@echo "Setting up .venv/ray (once)"
	@$(PIP) --target .venv/ray --no-deps $(RAY)
	@touch $@

test-ray: .venv/ray/.ready ## Test Ray Train: two workers on this machine, one of which is lost
	@$(PYTEST) -n 0 -rs tests/together/test_ray.py

# In an environment of its own. TORCH_INDEX=https://... is where a CPU build of an old torch can be had.
floors: $(READY) ## Run a sample of the tests on the oldest Python, torch and Lightning that pyproject.toml names
	@$(BIN)/python -m tests.support.floors $(FLOORS)

faults: $(READY) .venv/.peers ## Have every fault happen, and write docs/faults.md from what was seen
	@$(PYTEST) --dist loadfile -m fault --junitxml=build/faults.xml tests
	@$(BIN)/python -m tests.support.faults_page build/faults.xml

# TESTS=tests/together/test_zero.py is a part of them, which brings its part of the table up to date.
matrix: $(READY) .venv/.peers ## Run the tests and write docs/compatibility.md from what they have trained
	@$(BIN)/python -m tests.support.compatibility
	@$(PYTEST) -p tests.support.recording $(or $(TESTS),tests)

# Packages that are built on Lightning, in an environment of their own that sees the project's.
CLIENTS := pina-mathlab==0.3.2.post2610 monai==1.6.1 transformers==5.24.0 timm==1.0.31 chemprop==2.3.1 \
	torch-geometric==2.8.1 pytorch-forecasting==1.8.0 lightly==1.6.0 segmentation-models-pytorch==0.6.0
.venv/clients/.ready: $(READY)
	@echo "Setting up .venv/clients (once)"
	@$(BIN)/python -m venv .venv/clients
	@$(BIN)/python -c "import site; print(*site.getsitepackages(), sep='\n')" \
		> "$$(.venv/clients/bin/python -c 'import site; print(site.getsitepackages()[0])')/environment.pth"
	@.venv/clients/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(CLIENTS)
	@touch $@

clients: .venv/clients/.ready ## Train with client packages, and write docs/tested-with.md
	@OMP_NUM_THREADS=1 .venv/clients/bin/python -m benchmarks.clients.train

licences: $(READY) ## Write docs/licences.md from the metadata of what is installed
	@$(BIN)/python -m tests.support.licences

# mkdocs' own theme tells of another package at every start: not here.
site: $(READY) ## Build the documentation site into build/site, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "build/site/index.html"

lint: $(READY) ## Lint, check the format and the types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: $(READY) ## Format the code and fix what the linter can fix
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

# With the environment where there is one, else with the Python that is there: a machine with a GPU may have no network.
# DEVICE=cpu BENCH="--quick" shows that it runs; python -m benchmarks.steps.gpu --help says the rest.
bench-gpu: ## Measure all there is to measure on a GPU in less than 9 minutes, and write its table
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.steps.gpu --device $(or $(DEVICE),cuda) $(BENCH)

# Other packages' optimizers, as Python alone: torch is there. Meta's Shampoo is in no registry; where it is installed by
# hand (pip install --no-deps git+https://github.com/facebookresearch/optimizers, Python 3.12) it takes part.
# PEERS="--problem cnn" chooses; python -m benchmarks.peers.run --help says the rest.
OPTIMIZERS := heavyball==3.2.1 pytorch-optimizer==4.1.0 opt-einsum==3.4.0
.venv/bench-peers/.ready: $(READY)
	@echo "Setting up .venv/bench-peers (once)"
	@for package in $(OPTIMIZERS); do $(PIP) --target .venv/bench-peers --no-deps $$package \
		|| echo "$$package cannot be had: it is not compared"; done
	@mkdir -p .venv/bench-peers && touch $@

bench-peers: .venv/bench-peers/.ready ## Train side by side with other packages' optimizers; what the file has is skipped
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers.run $(PEERS)

bench: ## Print the commands of the benchmarks
	@echo "$(BIN)/python -m benchmarks.training.grid --problem byte_lm --method soap --lrs 1e-3 2e-3 4e-3 8e-3 --seeds 0 1 2 --jobs 2"
	@echo "$(BIN)/python -m benchmarks.training.grid --help   # the other problems and methods"

clean: ## Remove caches and outputs; keep .venv
	@rm -rf .pytest_cache .ruff_cache .hypothesis build dist demo_out lightning_logs
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
