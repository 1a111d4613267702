"""Runs the stages of `make test` or `make check`, and ends with one table of what came of them.

    run.py PREFIX STAGE…     a stage is the target PREFIX-STAGE of the Makefile in this folder

Every stage runs, also after one that failed; each is shown while it runs and kept in build/stages.
The last line holds the totals: `N passed, M failed, K skipped`. The exit status is 0 when nothing
failed, 1 when something did, and 130 after Ctrl-C, which ends the running stage and the run.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from counting import Counts, count, count_so_far

LOGS = Path("build/stages")


@dataclass
class Result:
    """A line of the table. A stage that was not run, or not to its end, has a `note`."""

    stage: str
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0
    note: str | None = None


class Runner:
    """Runs one stage after the other until a signal asks it to end."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.is_interrupted = False
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        """The first signal lets the stage clean up after itself, the next one kills it."""
        sent = signal.SIGKILL if self.is_interrupted else signal.SIGINT
        self.is_interrupted = True
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, sent)

    def run(self, stage: str) -> Result:
        if self.is_interrupted:
            return Result(stage, note="not run")
        target = f"{self.prefix}-{stage}"
        print(f"\n=== {stage} (make {target})", flush=True)
        LOGS.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(LOGS / f"{stage}.log", "w+b") as log:
            status = self._make(target, log)
            log.seek(0)
            text = log.read().decode(errors="replace").replace("\r\n", "\n")
        seconds = time.monotonic() - began
        if self.is_interrupted:
            return Result(stage, count_so_far(stage, text), seconds, "interrupted")
        return Result(stage, count(stage, text, status), seconds)

    def _make(self, target: str, log: BinaryIO) -> int:
        """In a process group of its own, so that a signal reaches all that the stage started."""
        self._process = subprocess.Popen(
            ["make", "--no-print-directory", target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MAKEFLAGS": _flags_without_jobs()},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while True:
            if not select.select([output], [], [], 0.2)[0]:
                # What a stage left running may keep the pipe open after its end.
                if self._process.poll() is not None:
                    break
                continue
            piece = os.read(output, 1 << 16)
            if not piece:
                break
            log.write(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return self._process.wait()


def _flags_without_jobs() -> str:
    """The jobs of the outer make are not for a process that is no make."""
    flags = os.environ.get("MAKEFLAGS", "")
    return re.sub(r"(?:^| )(?:-j\d*|--jobserver-\S+)(?= |$)", "", flags).strip()


def table(results: Sequence[Result]) -> str:
    """One row for each stage, below it why something was skipped and what failed."""
    width = max(len("stage"), *(len(result.stage) for result in results))
    lines = ["", f"{'stage':{width}}  passed  failed  skipped  seconds"]
    for result in results:
        counts = result.counts
        row = f"{result.stage:{width}}  {counts.passed:6}  {counts.failed:6}  {counts.skipped:7}"
        note = f"  {result.note}" if result.note else ""
        lines.append(f"{row}  {result.seconds:7.0f}{note}")
        lines += [f"  skipped {n}: {reason}" for reason, n in counts.reasons.items()]
        lines += [_indented(f"failed: {failure}") for failure in counts.failures]
        if counts.failed:
            lines.append(f"  all that it printed: {LOGS / result.stage}.log")
    seconds = sum(result.seconds for result in results)
    passed, failed, skipped = totals(results)
    lines.append(f"{'total':{width}}  {passed:6}  {failed:6}  {skipped:7}  {seconds:7.0f}")
    lines += ["", f"{passed} passed, {failed} failed, {skipped} skipped"]
    return "\n".join(lines)


def _indented(text: str) -> str:
    """The first lines of a reason; the log has all of them."""
    lines = text.splitlines()
    left_out = [f"{len(lines) - 12} more lines"] if len(lines) > 12 else []
    return "\n    ".join(f"  {line[:600]}" for line in [*lines[:12], *left_out])


def totals(results: Sequence[Result]) -> tuple[int, int, int]:
    every = [result.counts for result in results]
    return (
        sum(counts.passed for counts in every),
        sum(counts.failed for counts in every),
        sum(counts.skipped for counts in every),
    )


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2:
        print("usage: run.py PREFIX STAGE…; there is no stage to run", file=sys.stderr)
        return 2
    runner = Runner(arguments[0])
    results = [runner.run(stage) for stage in arguments[1:]]
    print(table(results), flush=True)
    if runner.is_interrupted:
        return 130
    return 1 if any(result.counts.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
