"""Runs the stages of `make test` or `make check`, and ends with one table of what came of them.

    run.py PREFIX STAGE… [-- STAGE…]

A stage is the target PREFIX-STAGE of the Makefile in this folder. The stages after `--` run at the
same time as those before it; on either side one follows the other. Every stage runs, also after one
that failed. What it prints is kept in build/stages. A stage before `--` is shown while it runs, one
after it when it ends; without stages before it those after it are shown.

The last line holds the totals: `N passed, M failed, K skipped`. The exit status is 0 when nothing
failed, 1 when something did, and 130 after Ctrl-C, which ends the running stages and the run.
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
from concurrent.futures import ThreadPoolExecutor
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
    """Runs stages until a signal asks it to end."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.is_interrupted = False
        self._processes: list[subprocess.Popen[bytes]] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        """The first signal lets the stages clean up after themselves, the next one kills them."""
        sent = signal.SIGKILL if self.is_interrupted else signal.SIGINT
        self.is_interrupted = True
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, sent)

    def run_all(self, stages: Sequence[str], beside: Sequence[str]) -> list[Result]:
        """The results, first those of `stages`. A signal reaches the main thread, which is here."""
        with ThreadPoolExecutor(1) as executor:
            others = executor.submit(lambda: [self.run(stage, False) for stage in beside])
            results = [self.run(stage, True) for stage in stages]
            return results + others.result()

    def run(self, stage: str, is_shown: bool) -> Result:
        if self.is_interrupted:
            return Result(stage, note="not run")
        target = f"{self.prefix}-{stage}"
        if is_shown:
            show(f"\n=== {stage} (make {target})\n".encode())
        LOGS.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(LOGS / f"{stage}.log", "w+b") as log:
            status = self._make(target, log, is_shown)
            log.seek(0)
            output = log.read()
        seconds = time.monotonic() - began
        if not is_shown:
            show(f"\n=== {stage} (make {target}), {seconds:.0f} s\n".encode() + output)
        text = output.decode(errors="replace").replace("\r\n", "\n")
        if self.is_interrupted:
            return Result(stage, count_so_far(stage, text), seconds, "interrupted")
        return Result(stage, count(stage, text, status), seconds)

    def _make(self, target: str, log: BinaryIO, is_shown: bool) -> int:
        """In a process group of its own, so that a signal reaches all that the stage started."""
        process = subprocess.Popen(
            ["make", "--no-print-directory", target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MAKEFLAGS": _flags_without_jobs()},
            start_new_session=True,
        )
        self._processes.append(process)
        if self.is_interrupted:
            # The signal came before the process was among those that it is passed on to.
            os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        output = process.stdout.fileno()
        while True:
            if not select.select([output], [], [], 0.2)[0]:
                # What a stage left running may keep the pipe open after its end.
                if process.poll() is not None:
                    break
                continue
            piece = os.read(output, 1 << 16)
            if not piece:
                break
            log.write(piece)
            log.flush()
            if is_shown:
                show(piece)
        return process.wait()


def show(output: bytes) -> None:
    """In one write: two stages may print at once."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def _flags_without_jobs() -> str:
    """The jobs of the outer make are not for a process that is no make."""
    flags = os.environ.get("MAKEFLAGS", "")
    return re.sub(r"(?:^| )(?:-j\d*|--jobserver-\S+)(?= |$)", "", flags).strip()


def table(results: Sequence[Result], seconds: float) -> str:
    """One row for each stage, below it why something was skipped and what failed.

    The seconds of the total are those of the run, in which stages may overlap.
    """
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
    if len(arguments) < 2 or arguments[1:] == ["--"]:
        print("usage: run.py PREFIX STAGE… [-- STAGE…]; there is no stage to run", file=sys.stderr)
        return 2
    prefix, *stages = arguments
    parting = stages.index("--") if "--" in stages else len(stages)
    began = time.monotonic()
    runner = Runner(prefix)
    before, after = stages[:parting], stages[parting + 1 :]
    results = runner.run_all(before or after, after if before else [])
    print(table(results, time.monotonic() - began), flush=True)
    if runner.is_interrupted:
        return 130
    return 1 if any(result.counts.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
