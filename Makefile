# Everything goes through one virtual environment; `make setup` is a no-op while its inputs are unchanged.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
CLIENTS := .venv-clients/bin
CLIENTS_STAMP := .venv-clients/.installed
RAY := .venv-ray/bin
RAY_STAMP := .venv-ray/.installed
NODE_CLIENTS := .work/clients/node
NODE_STAMP := $(NODE_CLIENTS)/.installed

.PHONY: setup serve test test-faults test-deploy test-browser test-ray test-clients image-test lint bench bench-peers demo clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

serve: setup  ## the demo model on 127.0.0.1:8000
	$(BIN)/medusa serve

# One process a core, each computing with one thread; a file's tests stay together, for the server they may share.
# Compiled modules are kept, whatever the shell says: a hundred processes are started, each of which would compile anew.
test: setup  ## the whole test suite
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

test-faults: setup tools  ## crashes, hangs, load, attacks: minutes, with real processes and the demo model
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults

test-deploy: setup tools  ## docker/ and deploy/: linted, validated, and scraped by a real Prometheus
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/deploy

test-browser: setup tools $(NODE_STAMP)  ## the page at /, and a frontend of others, driven in a real browser
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser

# Prometheus to scrape with, a clock to turn and a browser, from Debian's packages where they are missing.
.PHONY: tools
tools:
	command -v promtool > /dev/null && command -v prometheus > /dev/null && command -v faketime > /dev/null && \
		command -v chromium > /dev/null || { apt-get update -qq && \
		apt-get install -qq -y --no-install-recommends prometheus faketime chromium > /dev/null; }

# Needs root. The image is built and run in .work/image, and 3 GB stay there for the next time.
image-test: setup image-tools  ## the CPU image, built and run where no container engine is
	$(BIN)/python docker/image_test.py

.PHONY: image-tools
image-tools:
	command -v buildah > /dev/null && command -v crun > /dev/null && command -v debootstrap > /dev/null || \
		{ apt-get update -qq && \
		apt-get install -qq -y --no-install-recommends buildah crun debootstrap > /dev/null; }

test-ray: $(RAY_STAMP)  ## replicas under Ray Serve: both serve, stream, are killed, grow and end
	OMP_NUM_THREADS=1 $(RAY)/pytest tests/ray

# Ray brings a hundred packages and two HTTP servers that nothing else needs.
$(RAY_STAMP): pyproject.toml constraints-ray.txt
	test -x $(RAY)/python || $(PYTHON) -m venv .venv-ray
	$(RAY)/pip install --quiet --disable-pip-version-check -c constraints-ray.txt -e ".[ray]" httpx pytest pytest-timeout
	touch $@

test-clients: setup $(CLIENTS_STAMP) $(NODE_STAMP)  ## what clients make of the server, each as its users call it
	$(CLIENTS)/pytest tests/clients

# Only the extra, which brings Node too: the project itself would bring torch.
$(CLIENTS_STAMP): pyproject.toml constraints-clients.txt
	test -x $(CLIENTS)/python || $(PYTHON) -m venv .venv-clients
	$(CLIENTS)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["clients"], sep="\n")' > .venv-clients/requirements.txt
	$(CLIENTS)/pip install --quiet --disable-pip-version-check -c constraints-clients.txt \
		-r .venv-clients/requirements.txt
	touch $@

$(NODE_STAMP): tests/clients/node/package.json | $(CLIENTS_STAMP)
	mkdir -p $(NODE_CLIENTS)
	cp $< $(NODE_CLIENTS)
	$(CLIENTS)/npm install --prefix $(NODE_CLIENTS) --no-package-lock --no-audit --no-fund --loglevel=error
	touch $@

lint: setup  ## formatting, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## tokens per step and decode speed of the demo model
	$(BIN)/python benchmarks/decode.py

bench-peers: setup  ## our server through HTTP, alone and beside transformers and llama.cpp, in .work/peers
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[peers]"
	$(BIN)/python benchmarks/llama_cpp.py
	$(BIN)/python benchmarks/serve.py --out .work/peers/serve.json
	$(BIN)/python benchmarks/copying.py --out .work/peers/copying.json
	$(BIN)/python benchmarks/peers.py --out .work/peers/peers.json --chart .work/peers/peers.svg

demo: setup  ## train the demo model anew, from the standard library to the heads, in .work/demo
	$(BIN)/python -m medusa_core.demo.build --work .work/demo

clean:  ## caches, build output and the virtual environment
	rm -rf .venv .venv-clients .venv-ray .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
