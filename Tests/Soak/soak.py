"""Runs every rung of spec/TRUST.md for as long as it is given, and says what came of it.

    soak.py --minutes 60 [--seed N] [--only NAME ...] [--log FOLDER]

Each rung gets a share of the time; what has a fixed length runs once. Every round of a rung
that is drawn at random has a seed of its own. Ends with 1 when an invariant was broken.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWIFT_TEST = [
    os.environ.get("SWIFT", "swift"), "test", "--skip-build", "-c", "release",
    "--scratch-path", ".build-tests", "-Xswiftc", "-enable-testing", "--filter",
]  # fmt: skip
COLUMNS = ("runs", "faults", "states")


@dataclass(frozen=True)
class Rung:
    """One line of the table."""

    name: str
    # What to run for so many seconds from such a seed, and its environment.
    command: Callable[[int, int], tuple[list[str], dict[str, str]]]
    # (column, pattern): the first group of every match in the output is added to the column.
    counts: tuple[tuple[str, str], ...]
    # Of the time that what runs once leaves; 0 for what runs once.
    share: float = 0
    # Start again with another seed until the time is over.
    repeats: bool = False


@dataclass
class Result:
    """What a rung did."""

    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0
    failures: list[str] = field(default_factory=list)
    skipped: str | None = None


def swift(
    filter_: str, **environment: str
) -> Callable[[int, int], tuple[list[str], dict[str, str]]]:
    return lambda seconds, seed: (
        [*SWIFT_TEST, filter_],
        {**environment, "PCCHECK_CRASH_SEED": str(seed)},
    )


def python(file: str) -> Callable[[int, int], tuple[list[str], dict[str, str]]]:
    return lambda seconds, seed: (
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
         f"Tests/PythonTests/{file}"],
        {"PCCHECK_SOAK_SECONDS": str(seconds), "PCCHECK_SOAK_SEED": str(seed)},
    )  # fmt: skip


def simulate(*arguments: str) -> Callable[[int, int], tuple[list[str], dict[str, str]]]:
    return lambda seconds, seed: (
        ["build/bin/simulate", *(a.format(seconds=seconds, seed=seed) for a in arguments)],
        {"SWIFT_DETERMINISTIC_HASHING": "1"},
    )


def kills(seconds: int, seed: int) -> tuple[list[str], dict[str, str]]:
    return [
        sys.executable, "Tests/PythonTests/ranks/kills.py", "--world", "2",
        "--restarts", "1000000000", "--seconds", str(seconds), "--seed", str(seed),
    ], {}  # fmt: skip


def make(*arguments: str) -> Callable[[int, int], tuple[list[str], dict[str, str]]]:
    return lambda seconds, seed: (
        ["make", "--no-print-directory",
         *(a.format(seconds=seconds, seed=seed) for a in arguments)],
        {},
    )


CRASH_STATES = (("states", r": (\d+) crash states of"), ("runs", r"crash states of (\d+) runs"))
FILES = (("faults", r": (\d+) \S*(?: \S+)?, \d+ files,"), ("runs", r", (\d+) files,"))
RUNGS = (
    Rung("golden images", swift("FixtureTests|FuzzTests|SpecTableTests"), ()),
    Rung(
        "every byte of metadata, every value",
        swift("MutationTests/oneByteOfMetadata", PCCHECK_CRASH_SCALE="all"),
        (("runs", r": (\d+) files with one byte"), ("faults", r": (\d+) files with one byte")),
    ),
    Rung(
        "two faults anywhere",
        swift("MutationTests/twoFaultsAnywhere", PCCHECK_CRASH_SCALE="6"),
        (("runs", r": (\d+) files with two faults"),),
        share=10, repeats=True,
    ),
    Rung("cut at every sector", swift("MutationTests/cutAtEverySector"),
         (("runs", r": cut at (\d+) places"),)),
    Rung("crash states", swift("CrashStateTests", PCCHECK_CRASH_SCALE="3"), CRASH_STATES,
         share=10, repeats=True),
    Rung("an error at every call", swift("ErrorAtEveryCallTests", PCCHECK_CRASH_SCALE="20"),
         (("runs", r"failing calls: (\d+) runs"), ("faults", r"failing calls: (\d+) runs"))),
    Rung("stores to persistent memory", simulate("--persistent-memory", "--saves", "6"),
         (("states", r"persistent memory: (\d+) states"),)),
    Rung(
        "simulation",
        simulate("--seconds", "{seconds}", "--seeds", "1000000000", "--first", "{seed}"),
        (("runs", r"simulation: (\d+) seeds"), ("faults", r"(\d+) faults"),
         ("states", r"(\d+) states,")),
        share=30,
    ),
    Rung(
        "groups, simulated",
        simulate(
            "--groups", "--seconds", "{seconds}", "--seeds", "1000000000", "--first", "{seed}"
        ),
        (("runs", r"groups: (\d+) seeds"), ("faults", r"(\d+) faults"),
         ("states", r"(\d+) states,")),
        share=15,
    ),
    Rung("ranks, killed and restarted", kills,
         (("runs", r'"restarts": (\d+)'), ("faults", r'"killed_ranks": (\d+)')), share=15),
    Rung("file systems, killed and shut down", python("test_file_systems.py"), FILES, share=15),
    Rung("block log", python("test_block_log.py"),
         (("states", r": (\d+) images of"), ("runs", r"in (\d+) recordings")), share=10),
    Rung("disks that fail", python("test_failed_flush.py"),
         (("faults", r"failed flushes[^:]*: (\d+),"), ("states", r"(\d+) images, 0"))),
    Rung("emulated NVDIMM", python("test_nvdimm.py"), (("faults", r"NVDIMM: (\d+) looked"),),
         share=5),
    Rung("fuzzing", make("fuzz", "FUZZ_SECONDS={seconds}"), (("runs", r": (\d+) executions"),),
         share=10),
    Rung("threads and histories",
         make("test-threads", "THREAD_RUNS=200", "THREAD_FIRST={seed}"),
         (("runs", r"^(\d+) runs, \d+ operations"),), share=10, repeats=True),
    Rung("model of the protocol", make("model"), (("states", r"([\d,]+) states"),)),
)  # fmt: skip


class Progress:
    """One line on a terminal; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.began = total, time.monotonic()

    def show(self, number: int, rung: Rung, result: Result) -> None:
        if not sys.stderr.isatty():
            return
        elapsed = int(time.monotonic() - self.began)
        counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
        text = f"[{number}/{self.total}] {elapsed // 60}:{elapsed % 60:02} {rung.name}: {counts}"
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def rounds(rung: Rung, seconds: float, seed: int) -> Iterator[tuple[int, int]]:
    """Seconds and seed of each start of the rung."""
    deadline = time.monotonic() + seconds
    yield max(int(seconds), 1), seed
    while rung.repeats and time.monotonic() < deadline:
        seed += 1000
        yield max(int(deadline - time.monotonic()), 1), seed


def run(
    rung: Rung, seconds: float, seed: int, log: Path, report: Callable[[Result], None]
) -> Result:
    result = Result()
    began = time.monotonic()
    with (log / f"{rung.name.replace(' ', '-').replace(',', '')}.log").open("w") as output:
        for given, used in rounds(rung, seconds, seed):
            command, environment = rung.command(given, used)
            replay = " ".join([*(f"{k}={v}" for k, v in environment.items()), *command])
            print(f"$ {replay}", file=output, flush=True)
            try:
                child = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **environment}, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                result.failures.append(f"{replay} ({error}; make soak builds what is missing)")
                break
            assert child.stdout is not None
            for line in child.stdout:
                output.write(line)
                for column, pattern in rung.counts:
                    for match in re.finditer(pattern, line):
                        number = int(match[1].replace(",", ""))
                        result.counts[column] = result.counts.get(column, 0) + number
                if line.startswith("SKIPPED"):
                    result.skipped = line.split(": ", 1)[-1].strip()
                report(result)
            if child.wait() != 0:
                result.failures.append(replay)
    result.seconds = time.monotonic() - began
    return result


def table(results: list[tuple[Rung, Result]]) -> str:
    head = ["rung", *COLUMNS, "violations", "seconds", "note"]
    rows = [head]
    for rung, result in results:
        counts = [f"{result.counts[c]:,}" if c in result.counts else "–" for c in COLUMNS]
        note = f"skipped in part: {result.skipped}" if result.skipped else ""
        rows.append(
            [rung.name, *counts, str(len(result.failures)), f"{result.seconds:.0f}", note[:90]]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ) + ("  " + row[-1] if row[-1] else "")
        for row in rows
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of rungs")
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "soak")
    options = parser.parse_args()
    rungs = [r for r in RUNGS if not options.only or any(o in r.name for o in options.only)]
    if not rungs:
        parser.error("no rung has such a name: " + "; ".join(r.name for r in RUNGS))
    options.log.mkdir(parents=True, exist_ok=True)
    print(f"{options.minutes:g} minutes over {len(rungs)} rungs, seed {options.seed}", flush=True)
    progress = Progress(len(rungs))
    results: list[tuple[Rung, Result]] = []
    deadline = time.monotonic() + options.minutes * 60
    # What runs once goes first: the others share what is left.
    for number, rung in enumerate(sorted(rungs, key=lambda rung: rung.share > 0), 1):
        shares = sum(r.share for r in rungs if not any(r is done for done, _ in results))
        left = max(deadline - time.monotonic(), 0)
        seconds = left * rung.share / shares if rung.share else 0
        result = run(
            rung, seconds, options.seed, options.log,
            lambda result, n=number, r=rung: progress.show(n, r, result),
        )  # fmt: skip
        results.append((rung, result))
        progress.clear()
        print(table(results[-1:]).splitlines()[-1], flush=True)
    print(f"\n{table(results)}\n\nlogs: {os.path.relpath(options.log)}")
    failures = [failure for _, result in results for failure in result.failures]
    for failure in failures:
        print(f"VIOLATION, again with: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
