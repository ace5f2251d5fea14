# `make quickstart` and `make test` install what they need into .venv first.

PYTHON ?= python3
RUN = TF_CPP_MIN_LOG_LEVEL=3 .venv/bin/python
# Each of the workers computes in one thread: more would only wait for each other.
TEST = TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 $(RUN) -m pytest -q \
	-n $(JOBS) --dist worksteal
TESTS ?= tests
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help quickstart bench test test-all test-versions mutants arm-test peer-test lint wheel-test \
	bazel-test clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)
	@echo "Groups of slow tests, such as make test-all GROUP=files:"
	@$(PYTHON) tests/groups.py

.venv/complete: setup.py tools/setup_venv.sh
	@tools/setup_venv.sh $(PYTHON)

quickstart: .venv/complete ## Train, compress twice, ship, compare: out/quickstart
	@$(RUN) -m examples.quickstart --output=out/quickstart

bench: .venv/complete ## What a train step and a map cost, in ratios of one run
	@$(RUN) -m examples.benchmarks.bench_training
	@$(RUN) -m examples.benchmarks.bench_attribution

test: .venv/complete ## Run the library's contract (six minutes on two cores)
	@$(TEST) -m "not slow" $(TESTS)

test-all: .venv/complete ## Run every test, or with GROUP=... a group of slow tests
	@$(TEST) $(if $(GROUP),-m slow --group=$(GROUP)) $(TESTS)

test-versions: ## Run the contract on the oldest and newest versions
	@tools/test_versions.sh

mutants: .venv/complete ## Put 200 small faults in and see the tests fail
	@$(RUN) tools/mutants.py

arm-test: .venv/complete ## Run the C sources on emulated Cortex-M boards
	@tools/setup_arm.sh
	@$(RUN) -m pytest -q -rs tests/export/firmware/arm_test.py

.venv-peers/complete: .venv/complete tools/setup_peers.sh
	@tools/setup_peers.sh

peer-test: .venv-peers/complete ## Hold maps and scores against other libraries'
	@TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=3 .venv-peers/bin/python -m pytest \
		-q -rs -n $(JOBS) tests/peers

lint: .venv/complete ## Check style and likely mistakes
	@.venv/bin/python -m ruff check .

wheel-test: ## Build the wheel and test it from outside the checkout
	@tools/test_wheel.sh $(PYTHON)

bazel-test: .venv/complete ## Build and test with Bazel (see CONTRIBUTING.md)
	@tools/bazel/test.sh

clean: ## Remove .venv and all that was made
	rm -rf .venv .venv-peers .venv-versions out build dist *.egg-info
