# One command each: make install, make demo, make test, make check, make bench. A second run reuses what the first one set up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install install-dev demo bench test test-unit test-whole test-hostile test-redis test-chaos test-ray test-nightly check \
	format lock audit sbom clean

install: .venv/.demo
install-dev: .venv/.dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Of .dev the other is a part. pip compiles all: some of Ray's processes may not, and would at every start.
.venv/.demo .venv/.dev: .venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@ .venv/.demo

# In an environment of its own: beside what it brings along, every process that imports Ray took a second more to start.
.venv/.sbom: constraints.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cyclonedx-bom
	@touch $@

demo: install
	$(BIN)/python -m raysys.demo $(if $(KEEP),--keep)

bench: install-dev
	$(BIN)/python benchmarks/suite.py $(if $(QUICK),--quick)

test: test-unit test-whole test-hostile test-redis test-chaos test-ray

test-unit: install-dev .venv/.sbom
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not redis" tests/unit

# Whole builds, fits and simulations in one process, real models among them.
test-whole: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not redis" tests/whole

# What an enemy may send, over HTTP and in files; the cases are the same at every run.
test-hostile: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/hostile

test-redis: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m redis tests/on_redis tests/whole/test_build_changes.py

test-chaos: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/chaos

test-ray: install-dev
	$(BIN)/python -m pytest -m "not nightly" tests/on_ray

# The long version of what a cluster goes through; not part of `make test`. Prints a row for each fault.
test-nightly: install-dev
	$(BIN)/python -m pytest -s -m nightly tests/on_ray

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every package of a release, with the hashes of its files: pip install --require-hashes -r requirements.lock
lock: install-dev
	$(BIN)/uv pip compile -q --system-certs pyproject.toml -c constraints.txt --extra redis --extra jwt --extra tracing \
		--python-version 3.11 --generate-hashes --custom-compile-command "make lock" -o requirements.lock

# Known faults of these packages. Advice: it passes whatever it finds, also without a network.
audit: install-dev
	$(BIN)/python .ci/audit.py

# What a release is made of, as CycloneDX.
sbom: .venv/.sbom
	mkdir -p dist
	.venv/sbom/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
