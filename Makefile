# make demo and make test make .venv when it is missing and install this checkout into it; a second
# run installs only what changed. PYTHON= chooses the interpreter, PYTEST_ARGS= is passed on.
PYTHON ?= python3
BIN := .venv/bin
DEVELOP := $(PYTHON) tools/develop.py

.PHONY: demo demo-train test test-deep nightly mutants fuzz stress lint format stubs gpu-report bench docs clean

# Needs no torch.
demo:
	@$(DEVELOP) demo
	@$(BIN)/simtile demo

# Needs torch and the MiniLM weights (84 MB), which it installs.
demo-train:
	@$(DEVELOP) train
	@$(BIN)/simtile demo --train

# On two workers; PYTEST_ARGS="-n 0" runs all in one process.
test:
	@$(DEVELOP) test
	@$(BIN)/python -m pytest -n 2 -m "not gpu and not deep" $(PYTEST_ARGS)

test-deep:
	@$(DEVELOP) test
	@bash tools/test_deep.sh

# The quick tests with ten times their examples, other ones each time: an hour and more.
nightly:
	@$(DEVELOP) test
	@HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 -m "not gpu and not deep" $(PYTEST_ARGS)

# Every planted mistake, and the Triton kernels with every pair of options; test-deep tries an eighth.
mutants:
	@$(DEVELOP) test
	@SIMTILE_MUTANTS=all $(BIN)/python -m pytest -n 2 -m "not gpu" -k "test_mutant_is_caught or test_every_pair_of_options" $(PYTEST_ARGS)

# Damaged index files, for FUZZ_SECONDS each kind, and calls; what fails is kept in tests/fuzz_corpus.
FUZZ_SECONDS ?= 600
fuzz:
	@$(DEVELOP) test
	@for kind in FlatIndex CascadeIndex MultiVectorIndex; do \
	  $(BIN)/python tests/fuzz_files.py $$kind --seconds $(FUZZ_SECONDS) --seed $$(date +%s) || failed=1; done; \
	  $(BIN)/python tests/fuzz_calls.py --seconds $(FUZZ_SECONDS) --seed $$(date +%s) || failed=1; test -z "$$failed"

# 64 threads and forks for STRESS_SECONDS, Ctrl-C in every long call, a million calls, too little memory.
STRESS_SECONDS ?= 300
stress:
	@$(DEVELOP) test
	@$(BIN)/python tests/stress.py --seconds $(STRESS_SECONDS) --threads 64

lint:
	@$(DEVELOP) test
	@bash tools/lint.sh

format:
	@$(DEVELOP) test
	@bash tools/lint.sh --fix

stubs:
	@$(DEVELOP) test
	@$(BIN)/python tools/stubs.py

# Needs no GPU; without nvcc only the Triton half.
gpu-report:
	@$(DEVELOP) test
	@$(BIN)/python tools/gpu_report.py

# On an otherwise idle machine.
bench:
	@$(DEVELOP) bench
	@$(BIN)/simtile bench

# The site, into build/site; needs neither a compiler nor torch.
docs:
	@$(DEVELOP) docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build .venv
