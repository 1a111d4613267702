# `make demo` and `make test` install missing packages and build outdated files.
# `make help` lists everything.

SWIFT ?= swift
PYTHON3 ?= python3
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
# Tests/TidyTests compares every other place that must repeat it.
VERSION := $(shell cat VERSION)

VENV := .venv
PYTHON := $(VENV)/bin/python
SCRATCH := .build-c
BUILD := build
# The same for library and tools: SwiftPM compiles modules again when these differ.
SWIFT_FLAGS := -Xswiftc -static-stdlib -Xswiftc -use-ld=lld
STRIP := strip --strip-unneeded --remove-section=.comment
# Two stages of the tests may build the same file at once: it changes in one step.
# $(1): what was built; $(2): where it goes
put = install -m 755 $(1) $(2).$$PPID && $(STRIP) $(2).$$PPID && mv -f $(2).$$PPID $(2)
# The loader searches no folder of the build, and no pointer to a function stays writable.
LINK_FLAGS := --disable-local-rpath -Xlinker -z -Xlinker now
LIBRARY := $(BUILD)/lib/libpccheck.so
TOOLS := pccheck pcfsck pcinspect pcextract
TOOL_FILES := $(TOOLS:%=$(BUILD)/bin/%)
SOURCES := Package.swift $(shell find Sources -name '*.swift' -o -name '*.[ch]' -o -name '*.map')
PYTHON_SOURCES := $(shell find Sources/Python -name '*.py' -not -path '*/build/*') \
	Sources/Python/pyproject.toml

# One build at a time: SwiftPM locks its folder and uses every core.
.NOTPARALLEL:
.PHONY: help setup build lib tools python test check test-fresh test-lint test-types test-model \
	test-swift test-simulation test-c test-python test-frameworks test-packaging check-lint \
	check-types check-swift check-python model soak fuzz fuzz-corpus test-fuzz test-threads \
	coverage mutants planted docs test-docs demo bench bench-quick \
	validate-model install uninstall deb test-deb wheel test-wheel test-gpu \
	test-wheel-debian typecheck clean distclean format lint

help:
	@echo 'make demo         train, kill and resume a run, and compare every bit of the result'
	@echo 'make test         run all tests, and print what passed, failed and was skipped, and why'
	@echo '                  (STAGES="python c" runs two of its stages)'
	@echo 'make check        run lint, types and the fast tests (3 minutes once everything is built)'
	@echo 'make test-fresh   run make test in a new clone on a fresh Debian, with the Swift of this machine'
	@echo '                  (needs root; FRESH_TARGET=check and FRESH_STAGES= run less of it)'
	@echo 'make model        check every state of the model of the commit protocol (4 minutes)'
	@echo 'make soak         run the faults and crashes of spec/TRUST.md for $(SOAK_MINUTES) minutes'
	@echo '                  (SOAK_MINUTES=), and print the results (SOAK_SEED= repeats a run)'
	@echo 'make fuzz         run hostile inputs on decoders, recovery and repair (FUZZ_SECONDS=$(FUZZ_SECONDS))'
	@echo 'make test-threads run threads on one writer under ThreadSanitizer (THREAD_RUNS=$(THREAD_RUNS))'
	@echo 'make coverage     count the lines that the tests reach, by module; fails below the target'
	@echo 'make mutants      make $(MUTANTS) small changes of format and recovery (MUTANTS=); fails when the'
	@echo '                  tests notice less than 95 % of them'
	@echo 'make planted      plant mistakes in a copy of the writer; fails when a test that claims one misses it'
	@echo 'make build        build the library, the tools and the Python package'
	@echo 'make setup        install Debian packages and the Python environment $(VENV)'
	@echo 'make lib          build $(LIBRARY), pccheck.h and pccheck.pc under $(BUILD)'
	@echo 'make tools        build $(TOOLS) in $(BUILD)/bin'
	@echo 'make bench        compare PCcheck with other ways to save: tables, JSON and plots in $(BENCH_OUTPUT)'
	@echo '                  (about 40 minutes; BENCH_DIRECTORY=PATH names the disk to measure)'
	@echo 'make bench-quick  run a short bench, which proves that all of it runs (3 minutes)'
	@echo 'make validate-model'
	@echo '                  compare predictions of pccheck tune with measurements, in $(VALIDATE_OUTPUT)'
	@echo '                  (20 minutes; SWEEP=1 compares its recommendation with a sweep instead, and'
	@echo '                  takes 40; root adds a throttled disk; BENCH_DIRECTORY= as above)'
	@echo 'make install      install library, tools, manual pages and completions in PREFIX ($(PREFIX));'
	@echo '                  make uninstall removes them'
	@echo 'make deb          build a Debian package of the same in $(BUILD)/deb; make test-deb installs it'
	@echo '                  on a fresh Debian without Swift, and uses it there (needs root, a minute)'
	@echo 'make wheel        build the Python package, with the tools and every library, in $(BUILD)/wheel;'
	@echo '                  make test-wheel tests it alone, on each installed Python from 3.10 to 3.13;'
	@echo '                  make test-wheel-debian on the 3.13 of a fresh Debian (needs root, 2 minutes)'
	@echo 'make test-gpu     test and measure on an NVIDIA GPU: needs one, and a PYTHON3 with torch'
	@echo 'make typecheck    run mypy and pyright for Python $(TYPES_VERSIONS) (TYPES_VERSIONS=; 3 minutes)'
	@echo 'make format lint  apply and check the code style'
	@echo 'make clean        remove built files; make distclean also removes $(VENV)'
	@echo 'make docs         build the documentation as a site in $(SITE); open its index.html in a browser'

# ---------------------------------------------------------------- setting up

setup: $(VENV)/ready

$(BUILD)/packages-ready: .ci/install-packages
	SWIFT="$(SWIFT)" .ci/install-packages
	@mkdir -p $(@D) && touch $@

$(VENV)/ready: Sources/Python/requirements-dev.txt $(BUILD)/packages-ready
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r Sources/Python/requirements-dev.txt
	@touch $@

# Packages that only the tests need.
$(BUILD)/test-packages-ready: .ci/install-packages
	SWIFT="$(SWIFT)" .ci/install-packages --with-tests
	@mkdir -p $(@D) && touch $@

# ---------------------------------------------------------------- building

build: lib tools python

lib: $(LIBRARY) $(BUILD)/include/pccheck.h $(BUILD)/lib/pkgconfig/pccheck.pc

# The Swift run time is linked in, so that the library needs nothing but libc and the two
# compression and digest libraries; only the functions of pccheck.h are visible (other linkers
# let Swift metadata through the version script).
$(LIBRARY): $(SOURCES) $(BUILD)/packages-ready
	$(SWIFT) build -c release --scratch-path $(SCRATCH) --product pccheck-c \
		$(SWIFT_FLAGS) $(LINK_FLAGS) \
		-Xlinker -soname=libpccheck.so.1 \
		-Xlinker --version-script=$(CURDIR)/Sources/PCCheckC/pccheck.map
	@mkdir -p $(@D)
	$(call put,$(SCRATCH)/release/libpccheck-c.so,$(BUILD)/lib/libpccheck.so.1)
	ln -sf libpccheck.so.1 $@
	@touch $(BUILD)/lib/libpccheck.so.1

$(BUILD)/include/pccheck.h: Sources/CPCCheck/include/pccheck.h
	@mkdir -p $(@D)
	install -m 644 $< $@

# For programs that use the library from the build folder, not an installed one.
$(BUILD)/lib/pkgconfig/pccheck.pc: Sources/Packaging/pkg-config VERSION
	@mkdir -p $(@D)
	Sources/Packaging/pkg-config $(VERSION) "$(abspath $(BUILD))" "$(abspath $(BUILD))/lib" > $@

tools: $(TOOL_FILES)

$(BUILD)/bin/simulate: $(shell find Tests/Support -name '*.swift' -o -name '*.[ch]')
$(BUILD)/bin/pccheck $(BUILD)/bin/simulate: $(BUILD)/bin/%: $(SOURCES) $(BUILD)/packages-ready
	$(SWIFT) build -c release --scratch-path $(SCRATCH) --product $* $(SWIFT_FLAGS) $(LINK_FLAGS)
	@mkdir -p $(@D)
	$(call put,$(SCRATCH)/release/$*,$@)

# One program under four names: it is large, as it holds Swift's run time.
$(filter-out %/pccheck,$(TOOL_FILES)): $(BUILD)/bin/pccheck
	ln -sf pccheck $@

python: $(VENV)/pccheck-ready

# Not editable: the tests use the package as a user installs it.
$(VENV)/pccheck-ready: $(PYTHON_SOURCES) $(LIBRARY) $(BUILD)/bin/pccheck $(VENV)/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		--no-deps --force-reinstall ./Sources/Python
	@rm -rf Sources/Python/build Sources/Python/pccheck.egg-info
	@touch $@

INSTALL = "$(BUILD)" $(VERSION) "$(PREFIX)" "$(LIBDIR)" "$(DESTDIR)"

install: lib tools
	Sources/Packaging/install $(INSTALL)

uninstall:
	Sources/Packaging/install --remove $(INSTALL)

DEB_ROOT := $(BUILD)/deb/root
DEB = $(BUILD)/deb/pccheck_$(VERSION)_$(shell dpkg --print-architecture).deb

$(BUILD)/deb-packages-ready: .ci/install-packages
	SWIFT="$(SWIFT)" .ci/install-packages --with-deb
	@mkdir -p $(@D) && touch $@

# For Debian and Ubuntu: the installed package needs no Swift.
deb: lib tools $(BUILD)/deb-packages-ready
	rm -rf $(BUILD)/deb
	Sources/Packaging/install "$(BUILD)" $(VERSION) /usr \
		/usr/lib/$$(dpkg-architecture -qDEB_HOST_MULTIARCH) $(DEB_ROOT)
	Sources/Packaging/build-deb $(DEB_ROOT) $(VERSION) $(BUILD)/deb

# Debian's own checker; then into a fresh Debian in a folder, which needs root.
test-deb: deb
	lintian --fail-on error,warning --allow-root $(DEB)
	zstd -dqf Fixtures/valid/v1/safetensors.pcc.zst -o $(BUILD)/deb/run.pcc
	Tests/PackagingTests/try-deb $(DEB) $(BUILD)/deb/run.pcc $(BUILD)/deb/debian

$(VENV)/wheel-ready: Sources/Python/requirements-wheel.txt $(VENV)/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Contains the library, the program, and the libraries that they need.
wheel: lib $(BUILD)/bin/pccheck $(VENV)/wheel-ready
	rm -rf $(BUILD)/wheel
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		-w $(BUILD)/wheel/bare ./Sources/Python
	@rm -rf Sources/Python/build Sources/Python/pccheck.egg-info
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PYTHON) -m auditwheel repair -w $(BUILD)/wheel \
		$(BUILD)/wheel/bare/*.whl

# In fresh environments, one for each installed Python, with nothing else installed.
test-wheel: wheel
	PYTHON3="$(PYTHON3)" Tests/PackagingTests/try-wheel $(BUILD)/wheel/*.whl $(BUILD)/wheel/environment

# On a machine with an NVIDIA GPU, where PYTHON3 has torch. Where nothing can be built, carry the wheel
# there and run the same script.
GPU_FOLDER ?= $(BUILD)/gpu

test-gpu: wheel
	@mkdir -p $(GPU_FOLDER)
	$(PYTHON3) Tests/GPU/run.py $(BUILD)/wheel/*.whl --folder $(GPU_FOLDER)

$(VENV)/lint-ready: Sources/Python/requirements-lint.txt $(VENV)/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/types-ready: Sources/Python/requirements-types.txt $(VENV)/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The oldest and the newest Python; then the installed package as a user's checker sees it.
TYPES_VERSIONS ?= 3.10 3.13
MYPY_VERSIONS = $(TYPES_VERSIONS)
PYRIGHT_VERSIONS = $(TYPES_VERSIONS)

typecheck: python $(VENV)/types-ready
	for version in $(MYPY_VERSIONS); do \
		$(PYTHON) -m mypy --config-file Sources/Python/pyproject.toml \
			--strict --python-version $$version Sources/Python/pccheck Benchmarks || exit 1; \
	done
	for version in $(PYRIGHT_VERSIONS); do \
		$(PYTHON) -m pyright --pythonpath $(PYTHON) --pythonversion $$version \
			Sources/Python/pccheck Benchmarks || exit 1; \
	done
	$(PYTHON) -m mypy --strict --python-executable $(PYTHON) Tests/PackagingTests/typed_program.py
	$(PYTHON) -m pyright --pythonpath $(PYTHON) Tests/PackagingTests/typed_program.py

# In a fresh Debian with another Python, which needs root.
test-wheel-debian: wheel
	Tests/PackagingTests/try-wheel-debian $(BUILD)/wheel/*.whl $(BUILD)/wheel/debian

# ---------------------------------------------------------------- documentation

SITE := $(BUILD)/site

$(BUILD)/docs-packages-ready: .ci/install-packages
	SWIFT="$(SWIFT)" .ci/install-packages --with-docs
	@mkdir -p $(@D) && touch $@

$(VENV)/docs-ready: docs/requirements.txt Sources/Python/requirements-lint.txt $(VENV)/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The tools print what some pages show, and the compiler what is public of the Swift modules. Ruff,
# which breaks long signatures, is looked for on PATH. The variable silences a notice at each build:
# mkdocs-material is maintained until May 5, 2027.
# With --quiet, --strict would not see a broken link.
docs: lib tools $(VENV)/docs-ready $(BUILD)/docs-packages-ready
	PATH="$(abspath $(VENV))/bin:$$PATH" SWIFT="$(SWIFT)" NO_MKDOCS_2_WARNING=1 \
		$(PYTHON) -m mkdocs build --strict --config-file docs/mkdocs.yml \
		--site-dir $(abspath $(SITE))
	@echo 'open $(SITE)/index.html'

# ---------------------------------------------------------------- testing

STAGES ?= lint types model swift simulation fuzz threads c python frameworks packaging docs
CHECK_STAGES ?= lint types swift python
# These need no Python environment. They run at the same time as the others, because a build or a
# simulation that has one core leaves the other one idle.
SWIFT_STAGES := model swift simulation fuzz threads c
# $(1): test or check; $(2): its stages
run_stages = $(PYTHON3) Tests/Stages/run.py $(1) \
	$(filter-out $(SWIFT_STAGES),$(2)) -- $(filter $(SWIFT_STAGES),$(2))

# Every stage runs, also after one that failed. The packages come first, because installing them
# may ask for a password, and a stage has no terminal.
test: $(BUILD)/packages-ready $(BUILD)/test-packages-ready
	@$(call run_stages,test,$(STAGES))

check: $(BUILD)/packages-ready
	@$(call run_stages,check,$(CHECK_STAGES))

test-lint check-lint: lint
# One checker for each end: both for both take four minutes more.
test-types: MYPY_VERSIONS = 3.10
test-types: PYRIGHT_VERSIONS = 3.13
test-types: typecheck

check-types: TYPES_VERSIONS := 3.10
check-types: typecheck

# Runs FRESH_TARGET in a new clone of HEAD, in a Debian that has nothing but the Swift toolchain of
# this machine. FRESH_STAGES names some of its stages.
FRESH_TARGET ?= test
FRESH_STAGES ?=
FRESH_ROOT ?= $(BUILD)/fresh/debian

test-fresh: $(BUILD)/deb-packages-ready
	SWIFT="$(SWIFT)" Tests/PackagingTests/try-clone "$(FRESH_ROOT)" $(FRESH_TARGET) \
		$(if $(FRESH_STAGES),"$(STAGES_OF_$(FRESH_TARGET))=$(FRESH_STAGES)")

STAGES_OF_test := STAGES
STAGES_OF_check := CHECK_STAGES

# Up to two checkpoints in flight, in about a minute; `make model` continues to three.
test-model: $(BUILD)/packages-ready
	spec/model/check $(BUILD)/model 2

model: $(BUILD)/packages-ready
	spec/model/check $(BUILD)/model 3

# A release build, because most of them test very many images: five times as fast.
OPTIMIZED_TESTS := -c release --scratch-path .build-tests -Xswiftc -enable-testing

# These write fixtures and seeds when asked to: they are no tests.
NO_TESTS := --skip FixtureGenerator --skip SeedWriter
# These repeat something many thousand times, or start a process each.
SLOW_TESTS := CommandTests CrashConsistencyTests MutationTests StressTests FuzzTests

test-swift: $(BUILD)/packages-ready $(BUILD)/test-packages-ready
	$(SWIFT) build --build-tests $(OPTIMIZED_TESTS)
	$(SWIFT) test --skip-build $(OPTIMIZED_TESTS) $(NO_TESTS)

check-swift: $(BUILD)/packages-ready
	$(SWIFT) build --build-tests $(OPTIMIZED_TESTS)
	$(SWIFT) test --skip-build $(OPTIMIZED_TESTS) $(NO_TESTS) $(SLOW_TESTS:%=--skip %)

# The order of hashed collections must follow from the seed, too.
SIMULATE := SWIFT_DETERMINISTIC_HASHING=1 $(BUILD)/bin/simulate
SIMULATION_SEEDS ?= 20000
SIMULATION_FIRST ?= 1

# The tests must also find each planted mistake: a test that finds nothing would pass.
test-simulation: $(BUILD)/bin/simulate
	$(SIMULATE) --first $(SIMULATION_FIRST) --seeds $(SIMULATION_SEEDS)
	$(SIMULATE) --bugs --seeds 20000
	$(SIMULATE) --groups --first $(SIMULATION_FIRST) --seeds $(SIMULATION_SEEDS)
	$(SIMULATE) --groups --bugs --seeds 20000
	$(SIMULATE) --persistent-memory

RECORDER := $(BUILD)/tests/pmem-recorder/libpmem2.so.1

# Stands in front of libpmem2 and counts its calls.
$(RECORDER): Tests/CABITests/pmem_recorder.c $(BUILD)/packages-ready
	@mkdir -p $(@D)
	cc -std=gnu11 -Wall -Wextra -Werror -O1 -shared -fPIC -o $@.$$PPID \
		-DREAL_LIBRARY='"$(shell pkg-config --variable=libdir libpmem2)/libpmem2.so.1"' $<
	mv -f $@.$$PPID $@

FAKE_CUDA := $(BUILD)/tests/fakecuda/libcuda.so.1
FAKE_CUDA_SOURCES := $(wildcard Tests/Support/FakeCUDA/*.c)

# Stands in for the driver of a device.
$(FAKE_CUDA): $(FAKE_CUDA_SOURCES) $(wildcard Tests/Support/FakeCUDA/*.h \
		Tests/Support/FakeCUDA/include/*.h)
	@mkdir -p $(@D)
	cc -std=gnu11 -Wall -Wextra -Werror -O1 -g -shared -fPIC -pthread -o $@.$$PPID \
		-Wl,-soname,libcuda.so.1 -ITests/Support/FakeCUDA/include $(FAKE_CUDA_SOURCES)
	mv -f $@.$$PPID $@

CUDA_TEST_SOURCES := Tests/CABITests/cuda.c Tests/CABITests/cuda_failures.c \
	$(wildcard Sources/CPlatformCUDA/*.c)
CUDA_TEST_FLAGS := -std=gnu11 -Wall -Wextra -Werror -O1 -g -pthread \
	-ISources/CPlatformCUDA/include -ITests/Support/FakeCUDA/include

# With the stand-in linked in; then with it as a library of its own, under ThreadSanitizer where the
# compiler has one that runs on this kernel.
.PHONY: test-c-cuda
test-c-cuda: $(FAKE_CUDA)
	cc $(CUDA_TEST_FLAGS) -o $(BUILD)/tests/cuda $(CUDA_TEST_SOURCES) $(FAKE_CUDA_SOURCES)
	for seed in 1 2 3; do $(BUILD)/tests/cuda $$seed || exit 1; done
	@echo 'int main(void) { return 0; }' > $(BUILD)/tests/empty.c
	flag=-fsanitize=thread; \
	cc $$flag -o $(BUILD)/tests/empty $(BUILD)/tests/empty.c && $(BUILD)/tests/empty || \
		{ flag=; echo 'note: cc has no ThreadSanitizer that runs here' >&2; }; \
	cc $(CUDA_TEST_FLAGS) $$flag -o $(BUILD)/tests/cuda-library $(CUDA_TEST_SOURCES) $(FAKE_CUDA)
	TSAN_OPTIONS=halt_on_error=1 FAKECUDA_FAIL=cuInit:100:0 FAKECUDA_INIT_MS=100 \
		LD_LIBRARY_PATH=$(dir $(FAKE_CUDA)) $(BUILD)/tests/cuda-library 1 library
	! nm -u $(BUILD)/tests/cuda-library | grep -q __tsan_init || { \
		TSAN_OPTIONS='halt_on_error=1 exitcode=66' LD_LIBRARY_PATH=$(dir $(FAKE_CUDA)) \
		$(BUILD)/tests/cuda-library 1 race 2>/dev/null; test $$? = 66; }

test-c: lib $(RECORDER) test-c-cuda
	@mkdir -p $(BUILD)/tests && rm -rf $(BUILD)/tests/cabi-files && mkdir $(BUILD)/tests/cabi-files
	cc -std=gnu11 -Wall -Wextra -Werror -O1 -o $(BUILD)/tests/cabi Tests/CABITests/cabi.c \
		$$(PKG_CONFIG_PATH=$(BUILD)/lib/pkgconfig pkg-config --cflags --libs pccheck) \
		-Wl,-rpath,$(abspath $(BUILD)/lib)
	$(BUILD)/tests/cabi $(BUILD)/tests/cabi-files
	cc -std=gnu11 -Wall -Wextra -Werror -O2 -pthread -o $(BUILD)/tests/pmem \
		-ISources/CPlatformLinux/include Tests/CABITests/pmem.c Sources/CPlatformLinux/pmem.c \
		Sources/CPlatformLinux/descriptors.c
	PMEM2_FORCE_GRANULARITY=CACHE_LINE $(BUILD)/tests/pmem /dev/shm \
		$(abspath $(RECORDER))
	@! nm -D --defined-only $(LIBRARY) | grep -v ' T pcc_' || \
		{ echo 'error: $(LIBRARY) exports more than pcc_*' >&2; exit 1; }

# A test that passed removes what it wrote: all of it together is 27 GB. Threads of torch that wait
# for work do not spin: another test needs the core.
PYTEST := PATH="$$PATH:/usr/sbin:/sbin" OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m pytest -q -rsfE \
	-o tmp_path_retention_policy=failed
# Most tests wait more than they compute: for a device, a timer, another process. The tests of one
# file stay together, and files begin in their order. TEST_JOBS=0 runs one test after the other.
TEST_JOBS ?= 2
PYTEST_JOBS = -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

test-python: lib python tools $(RECORDER) $(FAKE_CUDA) $(BUILD)/test-packages-ready \
		$(VENV)/bench-ready
	PCCHECK_NVDIMM=1 $(PYTEST) $(PYTEST_JOBS) Tests/PythonTests \
		--ignore Tests/PythonTests/frameworks

FAST_PYTHON_TESTS := saving/test_core saving/test_policies state/test_state files/test_fixtures \
	loading/test_resume loading/test_verify docs/test_metrics tools/test_inspect \
	tools/test_schema_fsck tools/test_schema_inspect tools/test_schema_python

check-python: python tools
	$(PYTEST) $(PYTEST_JOBS) $(FAST_PYTHON_TESTS:%=Tests/PythonTests/%.py) Tests/Stages

$(VENV)/frameworks-ready: Sources/Python/requirements-frameworks.txt $(VENV)/ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The adapters, each with the framework that it is for.
test-frameworks: python tools $(FAKE_CUDA) $(VENV)/frameworks-ready
	$(PYTEST) $(PYTEST_JOBS) Tests/PythonTests/frameworks

test-packaging: python lib tools $(BUILD)/test-packages-ready
	$(PYTEST) $(PYTEST_JOBS) Tests/PackagingTests Tests/Stages

# Every page in a browser. Screens of each kind of page stay in $(BUILD)/site-screens.
test-docs: docs $(BUILD)/test-packages-ready
	$(PYTEST) Tests/DocsTests

# ---------------------------------------------------------------- crashing for longer

SOAK_MINUTES ?= 10
SOAK_SEED ?=

# Every rung of spec/TRUST.md.
soak: lib python tools $(BUILD)/bin/simulate $(BUILD)/test-packages-ready
	$(SWIFT) build --build-tests $(OPTIMIZED_TESTS)
	PATH="$$PATH:/usr/sbin:/sbin" $(PYTHON) Tests/Soak/soak.py --minutes $(SOAK_MINUTES) \
		$(SOAK_SEED:%=--seed %)

# ---------------------------------------------------------------- sanitizers

# libFuzzer without its main function, of the toolchain's own compiler.
FUZZ_SECONDS ?= 60
FUZZ_SCRATCH := .build-fuzz
FUZZ_COVERAGE := edge,trace-cmp,inline-8bit-counters,pc-table
FUZZ := Tests/FuzzDriver/run $(FUZZ_SCRATCH)/release/FuzzDriver

.PHONY: fuzz-driver
fuzz-driver: $(BUILD)/packages-ready
	PCCHECK_DRIVERS=1 $(SWIFT) build -c release --scratch-path $(FUZZ_SCRATCH) \
		--product FuzzDriver --sanitize address \
		-Xswiftc -sanitize-coverage=$(FUZZ_COVERAGE) -Xcc -fsanitize-coverage=$(FUZZ_COVERAGE) \
		-Xswiftc -use-ld=lld -Xlinker -lstdc++ \
		-Xlinker $$(Tests/FuzzDriver/run library "$(SWIFT)")

fuzz test-fuzz: fuzz-driver
	$(FUZZ) $(FUZZ_SECONDS)

# What was found since, in as few and as small inputs as reach as much.
fuzz-corpus: fuzz-driver
	$(SWIFT) build --build-tests
	rm -rf $(BUILD)/fuzz/seeds
	PCCHECK_WRITE_FUZZ_SEEDS=$(abspath $(BUILD))/fuzz/seeds $(SWIFT) test --skip-build \
		--filter SeedWriter
	$(FUZZ) merge $(BUILD)/fuzz/seeds

THREAD_RUNS ?= 20
THREAD_FIRST ?= 0
THREAD_SCRATCH := .build-tsan

# The first report ends the program: nothing is suppressed.
test-threads: $(BUILD)/packages-ready
	PCCHECK_DRIVERS=1 $(SWIFT) build -c release --scratch-path $(THREAD_SCRATCH) --product StressDriver \
		--sanitize thread -Xswiftc -use-ld=lld
	SWIFT_BACKTRACE=enable=no TSAN_OPTIONS=halt_on_error=1 \
		$(THREAD_SCRATCH)/release/StressDriver $(THREAD_RUNS) $(THREAD_FIRST)

# ---------------------------------------------------------------- measuring the tests

# Threads count at once, so that each line's count is an atomic one. The tests that only repeat
# what others do, a hundred thousand times, are left out; and those of the commands, each of which
# is a process of its own.
COVERAGE := --enable-code-coverage --scratch-path .build-coverage
COVERAGE_SKIPS := CommandTests CrashStateTests PlantedBugTests MutationTests

coverage: $(BUILD)/packages-ready
	$(SWIFT) build --build-tests $(COVERAGE) \
		-Xswiftc -Xllvm -Xswiftc -instrprof-atomic-counter-update-all
	rm -rf .build-coverage/debug/codecov
	$(SWIFT) test --skip-build $(COVERAGE) $(COVERAGE_SKIPS:%=--skip %)
	$(PYTHON3) Tests/Coverage/coverage.py .build-coverage

MUTANTS ?= 300
MUTANTS_SEED ?= 1

mutants: $(BUILD)/packages-ready
	$(PYTHON3) Tests/Mutation/mutants.py --count $(MUTANTS) --seed $(MUTANTS_SEED)

planted: $(BUILD)/packages-ready
	$(PYTHON3) Tests/Mutation/planted.py

demo: python tools
	$(PYTHON) Sources/Python/examples/demo.py

# ---------------------------------------------------------------- measuring

BENCH_DIRECTORY ?= .
BENCH_OUTPUT ?= bench-output
BENCH = $(PYTHON) -m Benchmarks --directory "$(BENCH_DIRECTORY)" --output "$(BENCH_OUTPUT)" \
	--tool $(BUILD)/bin/pccheck --example Sources/Python/examples/train_gpt.py

$(VENV)/bench-ready: Benchmarks/requirements.txt $(VENV)/ready
	SWIFT="$(SWIFT)" .ci/install-packages --with-bench
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Run on an idle machine: everything that is compared shares its device and its cores.
bench: python tools $(VENV)/bench-ready
	$(BENCH)

bench-quick: python tools $(VENV)/bench-ready
	$(BENCH) --quick

VALIDATE_OUTPUT ?= validate-output
SWEEP ?=

# As `bench`. Disks are made and mounted by root, in /usr/sbin.
validate-model: tools $(VENV)/bench-ready
	PATH="$$PATH:/usr/sbin:/sbin" $(PYTHON) -m Benchmarks.validate \
		--directory "$(BENCH_DIRECTORY)" --output "$(VALIDATE_OUTPUT)" \
		--tool $(BUILD)/bin/pccheck $(if $(SWEEP),--sweep)

# ---------------------------------------------------------------- care

format:
	$(SWIFT) format --in-place --recursive Package.swift Sources Tests

lint: $(VENV)/lint-ready
	$(SWIFT) format lint --strict --recursive Package.swift Sources Tests
	$(VENV)/bin/ruff check --config ruff.toml Sources/Python Benchmarks Tests docs

clean:
	rm -rf $(BUILD) $(SCRATCH) $(FUZZ_SCRATCH) $(THREAD_SCRATCH) .build demo-output bench-output \
		validate-output $(VENV)/pccheck-ready

distclean: clean
	rm -rf $(VENV)
