"""The runner of the stages, on stages that really pass, fail, crash, skip and are interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import counting  # noqa: E402

RUN = Path(__file__).with_name("run.py")

PYTEST_FILE = """
import pytest
def test_passes(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_needs(n): pytest.skip("needs a device: none is here")
@pytest.mark.skipif(True, reason="needs root")
def test_root(): pass
def test_fails(): assert 1 == 2, "one - two"
"""

MAKEFILE = """
PYTEST = {python} -m pytest -q -rsfE -p no:cacheprovider
test-lint check-lint:
	@echo linted
test-python:
	@$(PYTEST) tests.py
test-frameworks:
	@$(PYTEST) -k passes tests.py
test-packaging:
	@$(PYTEST) -k no_such_test tests.py
test-crash:
	@kill -SEGV $$$$
test-swift:
	@true
test-c:
	@echo 'ok 1 - opens'; echo 'ok 2 - closes'; echo 'cabi.c:3: x is false' >&2; exit 1
test-slow:
	@trap 'echo cleaned up; exit 1' INT; echo began; sleep 60 & wait
test-deaf:
	@trap '' INT; echo began; sleep 60; sleep 60
test-meets test-met:
	@touch $@; for n in $$(seq 300); do test -e test-meets -a -e test-met && break; sleep 0.1; done
	@test -e test-meets -a -e test-met && echo both are here
test-slow-beside:
	@trap 'echo cleaned up beside; exit 1' INT; touch begun; sleep 60 & wait
test-slow-too:
	@trap 'echo cleaned up; exit 1' INT; while ! test -e begun; do sleep 0.1; done; echo began; \
		sleep 60 & wait
test-child:
	@sleep 60 & echo left a child
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "Makefile").write_text(MAKEFILE.format(python=sys.executable))
    (tmp_path / "tests.py").write_text(PYTEST_FILE)
    return tmp_path


def run(project: Path, *stages: str, prefix: str = "test") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, prefix, *stages],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def row(output: str, stage: str) -> tuple[int, int, int]:
    """What the last line of the table that begins with `stage` says passed, failed, was skipped."""
    found = re.findall(rf"^{stage} +(\d+) +(\d+) +(\d+) ", output, re.M)
    assert found, output
    passed, failed, skipped = found[-1]
    return int(passed), int(failed), int(skipped)


def test_all_that_passes_ends_with_the_totals(project: Path) -> None:
    result = run(project, "lint", "frameworks")
    assert result.returncode == 0, result.stdout
    assert row(result.stdout, "lint") == (1, 0, 0)
    assert row(result.stdout, "frameworks") == (1, 0, 0)
    assert row(result.stdout, "total") == (2, 0, 0)
    assert result.stdout.splitlines()[-1] == "2 passed, 0 failed, 0 skipped"


def test_stages_after_a_failed_one_run_and_the_status_is_one(project: Path) -> None:
    result = run(project, "python", "lint")
    assert result.returncode == 1
    assert row(result.stdout, "python") == (1, 1, 3)
    assert row(result.stdout, "lint") == (1, 0, 0)
    assert "  skipped 2: needs a device: none is here\n  skipped 1: needs root\n" in result.stdout
    assert "  failed: tests.py::test_fails" in result.stdout
    assert "  all that it printed: build/stages/python.log\n" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 passed, 1 failed, 3 skipped"
    assert "test_fails" in (project / "build/stages/python.log").read_text()


def test_a_crash_is_a_failure_that_names_itself(project: Path) -> None:
    result = run(project, "crash", "lint")
    assert result.returncode == 1
    assert row(result.stdout, "crash") == (0, 1, 0)
    assert re.search(r"^  failed: make.*test-crash\] Segmentation fault", result.stdout, re.M)
    assert row(result.stdout, "lint") == (1, 0, 0)


def test_what_finished_before_a_failure_is_counted(project: Path) -> None:
    result = run(project, "c")
    assert result.returncode == 1
    assert row(result.stdout, "c") == (2, 1, 0)


@pytest.mark.parametrize("stage", ["packaging", "swift", "no-such-stage"])
def test_a_stage_that_tested_nothing_has_failed(project: Path, stage: str) -> None:
    """pytest that selects nothing, a tool that prints no count, a target that is missing."""
    result = run(project, stage)
    assert result.returncode == 1
    assert row(result.stdout, stage) == (0, 1, 0)


def test_the_prefix_chooses_the_targets(project: Path) -> None:
    result = run(project, "lint", prefix="check")
    assert result.returncode == 0
    assert "(make check-lint)" in result.stdout


def test_a_child_that_a_stage_left_is_not_waited_for(project: Path) -> None:
    began = time.monotonic()
    result = run(project, "child")
    assert row(result.stdout, "child") == (1, 0, 0)
    assert time.monotonic() - began < 40


def test_stages_after_the_dashes_run_at_the_same_time(project: Path) -> None:
    """Each of two waits until the other one runs; the rest of either side follows in its order."""
    result = run(project, "meets", "lint", "--", "met", "c", "python")
    assert result.returncode == 1
    counts = [row(result.stdout, stage) for stage in ("meets", "lint", "met", "c", "python")]
    assert counts == [(1, 0, 0), (1, 0, 0), (1, 0, 0), (2, 1, 0), (1, 1, 3)]
    table = result.stdout.split("\nstage ")[1]
    rows = re.findall(r"^(\w+) +\d+ +\d+ +\d+ +\d+$", table, re.M)
    assert rows == ["meets", "lint", "met", "c", "python", "total"]
    assert result.stdout.splitlines()[-1] == "6 passed, 2 failed, 3 skipped"
    # What the second side prints comes in one piece, below its heading.
    assert re.search(r"^=== met \(make test-met\), \d+ s\nboth are here$", result.stdout, re.M)
    assert (project / "build/stages/met.log").read_text() == "both are here\n"


def test_stages_of_the_second_side_alone_are_shown_while_they_run(project: Path) -> None:
    result = run(project, "--", "lint", "c")
    assert (row(result.stdout, "lint"), row(result.stdout, "c")) == ((1, 0, 0), (2, 1, 0))
    assert re.search(r"^=== lint \(make test-lint\)\nlinted$", result.stdout, re.M)
    assert run(project, "--").returncode == 2


def start(project: Path, *stages: str) -> subprocess.Popen[str]:
    """Runs stages until one has begun."""
    process = subprocess.Popen(
        [sys.executable, RUN, "test", *stages],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line == "began\n":
            return process
    pytest.fail("it never began")


def test_an_interrupt_lets_the_stage_clean_up_and_ends_the_run(project: Path) -> None:
    process = start(project, "lint", "slow", "python")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cleaned up\n" in output
    assert re.search(r"^slow  .* interrupted$", output, re.M), output
    assert re.search(r"^python  .* not run$", output, re.M), output
    assert output.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


def test_an_interrupt_reaches_both_of_two_stages(project: Path) -> None:
    process = start(project, "slow-too", "lint", "--", "slow-beside", "c")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cleaned up\n" in output and "cleaned up beside\n" in output
    for stage, note in (
        ("slow-too", "interrupted"), ("lint", "not run"), ("slow-beside", "interrupted"),
        ("c", "not run"),
    ):  # fmt: skip
        assert re.search(rf"^{stage} .* {note}$", output, re.M), output
    assert output.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"


def test_a_second_interrupt_kills_the_stage(project: Path) -> None:
    process = start(project, "deaf")
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None, "the stage is deaf to the first one"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"^deaf  .* interrupted$", output, re.M), output


def test_jobs_of_the_outer_make_are_left_out(project: Path) -> None:
    (project / "outer.mk").write_text(f"all:\n\t@{sys.executable} {RUN} test flags\n")
    with open(project / "Makefile", "a") as makefile:
        makefile.write("test-flags:\n\t@echo value $(VALUE)\n")
    result = subprocess.run(
        ["make", "-j4", "-f", "outer.mk", "VALUE=7"],
        cwd=project, capture_output=True, text=True, timeout=60, check=True,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
    )  # fmt: skip
    assert "value 7\n" in result.stdout
    assert "jobserver" not in result.stdout + result.stderr


# -- what the tools print

SWIFT = """\
◇ Test run started.
➜ Test aFileWithoutWritePermissionIsRefused() skipped: "root may write to any file"
➜ Test bare() skipped.
✔ Test one() passed after 0.001 seconds.
✔ Test two(seed:) with 9 test cases passed after 15.2 seconds.
✘ Test three() recorded an issue at Some.swift:56:9: Expectation failed: 1 == 2
✘ Test three() failed after 27.709 seconds with 1 issue.
"""
CLOSING = "✘ Test run with 5 tests in 2 suites failed after 27.925 seconds with 1 issue.\n"
LINES = [
    ("model", "N=1, 4 saves, 2 crashes, 1 failed flush: 5 states, errors: 0\n"
     "N=2, 4 saves, 1 crashes, 1 failed flush: 5 states, errors: cut\n"
     "BUG_SKIP_F1: assertion violated, after 3 states\n"
     "BUG_NO_F0: not found, after 7 states\n"
     "group, 2 slots, 2 saves, 2 restarts: 5 states, errors: 0\n"
     "group, 3 slots, 3 saves, 1 restarts: 5 states, errors: 1\n"
     "group, BUG_MIN: assertion violated, after 3 states\n"
     "group, BUG_STEP: not found, after 7 states\n", (4, 4)),
    ("simulation", "simulation: 20 seeds, 9 faults, 5 states, 0 violations, 1 s\n"
     "groups: 20 seeds, 9 faults, 5 states, 0 violations, 1 s\n"
     "skipF1: after 3 seeds: Violation: lost\nreuseEarly: after 20000 seeds: MISSED\n"
     "persistent memory: 85 states, all subsets of stores at 3 cuts, 1 violations\n", (3, 2)),
    ("fuzz", "decoder: 100 executions, 9 edges covered, 0 crashes\n"
     "repair: 10 executions, 9 edges covered, 1 crashes\n", (1, 1)),
    ("threads", "20 runs, 900 operations, no violation\n", (1, 0)),
    ("threads", "seed 4: lost\nreplay: StressDriver 100 4\n", (0, 1)),
    ("types", "Success: no issues found in 68 source files\n"
     "0 errors, 0 warnings, 0 informations \n"
     "Found 2 errors in 1 file (checked 1 source file)\n1 error, 0 warnings, 0 informations \n",
     (2, 2)),
    ("c", "ok 1 - opens\nok 2 - closes\n2 passed, 0 failed\npersistent memory: ok\n", (3, 0)),
]  # fmt: skip


def test_swift_testing_is_counted() -> None:
    counts = counting.count("swift", SWIFT + CLOSING, 1)
    assert (counts.passed, counts.failed, counts.skipped) == (2, 1, 2)
    assert counts.failures == ["three()\nat Some.swift:56:9: Expectation failed: 1 == 2"]
    assert dict(counts.reasons) == {
        "root may write to any file": 1, "bare() gives no reason": 1,
    }  # fmt: skip


def test_swift_testing_that_breaks_off_has_failed() -> None:
    counts = counting.count("swift", SWIFT, 1)
    assert (counts.passed, counts.failed, counts.skipped) == (2, 2, 2)
    assert "broke off" in counts.failures[-1]


@pytest.mark.parametrize(("stage", "text", "expected"), LINES, ids=lambda value: str(value)[:12])
def test_lines_with_a_verdict_are_counted(
    stage: str, text: str, expected: tuple[int, int]
) -> None:
    counts = counting.count(stage, text, int(expected[1] > 0))
    assert (counts.passed, counts.failed) == expected
