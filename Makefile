# make demo | make test | make isas | make triton | make emulate | make verify | make bench | make harden | make arm |
# make lint | make wheels | make wheel-test: each sets up what it needs.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
CXX_NAMES := -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
SOURCES := $(shell find csrc $(CXX_NAMES)) setup.py $(wildcard tools/*_build.py) tools/source_setup.py tools/build_progress.py pyproject.toml
CXX_FILES := $(shell find csrc tests/native tools $(CXX_NAMES))
# One at a time in the same .venv, whatever -j or another terminal's make says: two pips undo each other's work.
LOCKED := $(if $(shell command -v flock),flock $(VENV))
PIP := $(LOCKED) $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: demo test isas triton emulate verify bench harden arm lint format wheels wheel-test clean

demo: $(VENV)/.built
	$(BIN)/python examples/lab.py --loss both
	$(BIN)/python examples/zoo.py --loss both

test: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What an instruction set can change, once more on each but the best, which `make test` runs. .ci/run takes a part.
ISA_TESTS := tests/values tests/kernels/cpu
OTHER_ISAS := import softkern; print(*[name for name, _, reason in softkern._C.isas() if not reason][1:])
isas: $(VENV)/.built $(VENV)/.test
	for isa in $$($(BIN)/python -c '$(OTHER_ISAS)'); do \
		echo "SOFTKERN_CPU_ISA=$$isa"; \
		SOFTKERN_CPU_ISA=$$isa $(BIN)/python -m pytest $(ISA_TESTS) $(PYTEST_ARGS) || exit; done

# The Triton kernels without a GPU: compiled for NVIDIA's, and interpreted. A quarter of an hour, of which .ci/run
# takes a third: a third of the programs compiled, each value of each option interpreted once.
EVERY_KERNEL := 1
TRITON_ARGS := --quick
triton: $(VENV)/.built $(VENV)/.test
	EVERY_KERNEL=$(EVERY_KERNEL) $(BIN)/python -m pytest tests/kernels/triton/test_compiled.py
	TRITON_INTERPRET=1 $(BIN)/python -m pytest \
		$(addprefix tests/kernels/triton/test_,kernels.py row_losses.py row_parts.py row_merge.py)
	TRITON_INTERPRET=1 $(BIN)/python tests/support/triton_interpreter.py $(TRITON_ARGS)

# The CUDA kernels without a GPU: the same sources by a C++ compiler, run on the host under sanitizers. A second
# extension beside the first; tests and matrix look for theirs in its folder. A sanitizer's last words would be lost
# in pytest's own files.
EMULATED := build/emulated
# All of -fsanitize=undefined takes three times as long to compile, for checks that AddressSanitizer makes as well.
EMULATED_SANITIZERS := address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero
EMULATED_RUN := LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(EMULATED)/lib $(BIN)/python -P
emulate: $(VENV)/.built $(VENV)/.test
	SOFTKERN_CUDA=emulate SOFTKERN_SANITIZE=$(EMULATED_SANITIZERS) $(BIN)/python setup.py -q build \
		--build-lib $(EMULATED)/lib --build-temp $(EMULATED)/temp
	$(EMULATED_RUN) -m pytest --capture=sys -o pythonpath="$(EMULATED)/lib tests/support" $(EMULATE_ARGS) \
		tests/kernels/cuda
	$(EMULATED_RUN) -m softkern.verify --backend cuda --quick

verify: $(VENV)/.built
	$(BIN)/python -m softkern.verify $(VERIFY_ARGS)

bench: $(VENV)/.built $(VENV)/.peers
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# The kernels alone, no torch and no Python: every tensor between two forbidden pages, all instruction sets of this
# CPU against each other and against the hashes of tests/native/sweep.hashes (`build/harden/sweep 5000 hashes` prints
# those of a change that is meant to change bits); exp and log over every float. HARDEN_SANITIZE=address,undefined
# adds these; the kernels then compile for a quarter of an hour, those of .ci/run, which names fewer checks, for a
# minute.
HARDEN := build/harden$(if $(HARDEN_SANITIZE),-sanitized)
harden: $(HARDEN)/sweep $(HARDEN)/exhaustive
	$(HARDEN)/sweep $(HARDEN_ARGS)
	$(HARDEN)/exhaustive $(EXHAUSTIVE_ARGS)

ELEMENTS := float double bfloat16 half
HARDEN_ISAS := $(notdir $(basename $(wildcard csrc/cpu/isa/*.cpp)))
HARDEN_OBJECTS := $(foreach element,$(ELEMENTS),$(HARDEN_ISAS:%=$(HARDEN)/%.$(element).o)) $(HARDEN)/dispatch.o \
	$(if $(filter portable,$(HARDEN_ISAS)),,$(HARDEN)/without_portable.o)
.SECONDARY: $(HARDEN_OBJECTS)
HARDEN_FLAGS := -std=c++17 -O2 -g1 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wno-psabi \
	$(if $(HARDEN_SANITIZE),-O1 -fsanitize=$(HARDEN_SANITIZE) -fno-sanitize-recover=all)

$(HARDEN)/%.float.o: SOFTKERN_ELEMENT := float
$(HARDEN)/%.double.o: SOFTKERN_ELEMENT := double
$(HARDEN)/%.bfloat16.o: SOFTKERN_ELEMENT := softkern::BFloat16
$(HARDEN)/%.half.o: SOFTKERN_ELEMENT := softkern::Half
define isa_object
$(HARDEN)/%.$(1).o: csrc/cpu/isa/%.cpp $(CXX_FILES)
	mkdir -p $$(@D) && $$(CXX) $$(HARDEN_FLAGS) $$(HARDEN_KERNEL_FLAGS) -DSOFTKERN_ELEMENT=$$(SOFTKERN_ELEMENT) -c $$< -o $$@
endef
$(foreach element,$(ELEMENTS),$(eval $(call isa_object,$(element))))
$(HARDEN)/dispatch.o: csrc/cpu/dispatch.cpp $(CXX_FILES)
	mkdir -p $(@D) && $(CXX) $(HARDEN_FLAGS) -c $< -o $@
$(HARDEN)/without_portable.o: tests/native/without_portable.cpp $(CXX_FILES)
	mkdir -p $(@D) && $(CXX) $(HARDEN_FLAGS) -c $< -o $@
$(HARDEN)/%: tests/native/%.cpp $(HARDEN_OBJECTS) tests/native/sweep.hashes $(wildcard tests/native/*.h)
	$(CXX) $(HARDEN_FLAGS) -pthread $< $(HARDEN_OBJECTS) -o $@

# The same on 64-bit ARM, without such a CPU: compiled for it, and run by an emulator, which takes thirty times as long:
# a sample of the cases, and exp and log at every ARM_FLOATS-th float. `make arm ARM_CASES=5000` runs all cases. .ci/run
# leaves out the portable kernels, which it tests on its own CPU: half of the six minutes that compilers take.
ARM := build/arm
ARM_CXX := aarch64-linux-gnu-g++
ARM_RUN := qemu-aarch64-static -L /usr/aarch64-linux-gnu
ARM_ISAS := neon portable
ARM_LEVEL := -O1
ARM_CASES := sample
ARM_FLOATS := 4001
# For macOS, what a compiler says of the sources: by clang with libc++, and with musl's headers, since there is no SDK.
LIBCXX := $(lastword $(wildcard /usr/lib/llvm-*/include/c++/v1))
MUSL := $(wildcard /usr/include/$(shell uname -m)-linux-musl)
MACOS := clang++ -target arm64-apple-macos11 -std=c++17 -fsyntax-only -Wall -Werror -D_GNU_SOURCE \
	-nostdinc++ -isystem $(LIBCXX) -nostdlibinc -isystem $(MUSL)
arm:
	$(MAKE) HARDEN=$(ARM) CXX="$(ARM_CXX)" HARDEN_ISAS="$(ARM_ISAS)" HARDEN_KERNEL_FLAGS=$(ARM_LEVEL) \
		$(ARM)/sweep $(ARM)/exhaustive
	$(ARM_RUN) $(ARM)/sweep $(ARM_CASES)
	$(ARM_RUN) $(ARM)/exhaustive $(ARM_FLOATS)
	$(if $(and $(LIBCXX),$(MUSL),$(shell command -v clang++)),$(MACOS) -DSOFTKERN_ELEMENT=softkern::Half $(wildcard csrc/cpu/*.cpp csrc/cpu/isa/*.cpp), \
		@echo "no clang, libc++ and musl on this machine: nothing was compiled for macOS")

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/python -m mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The sdist and the wheels in dist/; then the same out of the sdist, and used with other torches and another Python.
# Both bring these torches into build/torches: gigabytes. WHEEL_ARGS="--torch own" does with the one that is there.
wheels: $(VENV)/.wheel
	$(BIN)/python tools/make_wheels.py $(WHEEL_ARGS)
wheel-test: $(VENV)/.wheel
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST-9.0}" $(BIN)/python tools/check_wheel.py $(WHEEL_ARGS)

clean:
	rm -rf build dist *.egg-info softkern/_pybind.*.so $(VENV)

# The interpreter's own torch serves if it has one that a virtual environment can see; a second copy would be
# several hundred megabytes.
$(VENV)/.torch:
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) '$(TORCH)' 'setuptools>=77,<82'
	$(PIP) -q numpy 'setuptools>=77,<82' wheel ninja
	touch $@

# First by setup.py itself, since pip would hide what it says; then pip finds it compiled. --force: ninja and the
# kernels' keys know what is out of date, and setuptools does not, after a change of torch or of FORCE_CUDA.
$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(LOCKED) $(BIN)/python setup.py -q build_ext --force --inplace
	$(PIP) -q --no-build-isolation --no-deps -e .
	touch $@

# The extra of pyproject.toml, of the softkern that is installed already; minutes, and nothing that the demo needs.
$(VENV)/.test: pyproject.toml | $(VENV)/.built
	@echo "softkern: installing what the tests need, some hundred megabytes"
	$(PIP) -q 'softkern[test]'
	touch $@

# One that can't be had is a line in the benchmark's output, not an end to it.
$(VENV)/.peers: $(VENV)/.built
	$(PIP) -q 'softkern[bench]'
	for peer in $$(sed -n 's/^peers = \[\(.*\)\].*/\1/p' pyproject.toml | tr -d '",'); do \
		$(PIP) $$peer || echo "$$peer: not to be had"; done
	touch $@

# Read from pyproject.toml, the only place that pins them. mypy looks into torch.
$(VENV)/.lint $(VENV)/.wheel: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(PIP) -q $$(sed -n 's/^$* = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@
