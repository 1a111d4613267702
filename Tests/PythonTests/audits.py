"""What must be true of a file after a power cut, whatever reached the disk."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from block_log import Entry
from crash_child import digest_of, state_of
from disks import PCFSCK, command
from writers import SEED, Violation

import pccheck


@dataclass(frozen=True)
class Promise:
    """An acknowledged checkpoint, and how long the log was when it was acknowledged."""

    log_end: int
    step: int
    sequence: int


@dataclass
class Recording:
    """What writers wrote to a disk, and what they promised meanwhile."""

    seed: int
    byte_count: int
    entries: list[Entry] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    #: How long the log was when there was a file system, if there is one, and when there was
    #: a file on a bare device.
    made_end: int = 0
    created_end: int = 0

    def promised(self, log_end: int) -> tuple[int, int]:
        """The newest step and the highest sequence that were acknowledged by then, or -1, 0."""
        by_then = [promise for promise in self.promises if promise.log_end <= log_end]
        return (
            max((promise.step for promise in by_then), default=-1),
            max((promise.sequence for promise in by_then), default=0),
        )


@functools.lru_cache(maxsize=4096)
def expected_digest(seed: int, step: int) -> str:
    return digest_of(state_of(seed, step))


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Of damage that is passed over: there is much of it here, and it is expected."""
    log = logging.getLogger("pccheck")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class Auditor:
    """Looks at one file after another, each as a power cut may have left it."""

    #: So many files wait for pcfsck, which takes longer to start than to look.
    BATCH_COUNT = 50

    def __init__(
        self, name: str, recording: Recording, folder: Path,
        fsck_interval: int, resume_interval: int = 10,
    ) -> None:  # fmt: skip
        """pcfsck looks at every so many files, and of those every so many are resumed from."""
        self.name = name
        self._resume_interval = fsck_interval * resume_interval
        self._fsck_interval = fsck_interval
        self.recording = recording
        self.image_count = 0
        #: What was met: newer, empty, repaired, resumed.
        self.counts: Counter[str] = Counter()
        self._folder = folder / "waiting"
        self._folder.mkdir()
        self._waiting: list[tuple[Path, int, str]] = []

    def require(self, condition: bool, where: str, text: str) -> None:
        if not condition:
            raise Violation(
                f"{self.name}, image {self.image_count}, {where}: {text}; "
                f"replay with PCCHECK_SOAK_SEED={SEED}"
            )

    def check(self, path: Path | None, log_end: int, where: str) -> None:
        """None where there is no file."""
        self.image_count += 1
        floor, sequence = self.recording.promised(log_end)
        if path is None:
            self.require(floor < 0, where, "the file is gone, acknowledged saves are lost")
            self.counts["empty"] += 1
            return
        try:
            step = self._load(path, where)
        except pccheck.NoCheckpoint as error:
            self.require(floor < 0, where, f"step {floor} was acknowledged and is lost: {error}")
            step = -1
            self.counts["empty"] += 1
        except (pccheck.Corrupt, pccheck.NotACheckpointFile) as error:
            self.require(floor < 0, where, f"step {floor} was acknowledged and is lost: {error}")
            self.require(log_end < self.recording.created_end, where, f"cannot be opened: {error}")
            self.counts["empty"] += 1
            return
        self.require(
            step >= floor, where, f"step {floor} was acknowledged and is lost; the newest is {step}"
        )
        self.counts["newer"] += step > floor
        if self.image_count % self._fsck_interval == 0:
            self._keep(path, step, where)
            if self.image_count % self._resume_interval == 0:
                try:
                    self._resume(step, sequence, where)
                except pccheck.Corrupt as error:
                    self.require(False, where, f"the next writer cannot be opened: {error}")
        if len(self._waiting) == self.BATCH_COUNT:
            self.finish()

    def _load(self, path: Path, where: str) -> int:
        with without_warnings():
            state = pccheck.load(path)
        step = int(state["step"])
        found, expected = digest_of(state), expected_digest(self.recording.seed, step)
        self.require(
            found == expected, where, f"step {step} has the digest {found}, expected {expected}"
        )
        return step

    def _keep(self, path: Path, step: int, where: str) -> None:
        copy = self._folder / f"{len(self._waiting)}.pcc"
        shutil.copyfile(path, copy)
        self._waiting.append((copy, step, where))

    def _resume(self, step: int, sequence: int, where: str) -> None:
        """What the next writer does, on a copy of its own."""
        copy = self._folder / "resumed.pcc"
        shutil.copyfile(self._waiting[-1][0], copy)
        highest = pccheck.report(copy)["highest_sequence"]
        with without_warnings(), pccheck.Checkpointer(copy, backend="buffered") as writer:
            next_step, _ = writer.resume()
            self.require(
                next_step == step + 1, where, f"a resume begins at {next_step}, a load gave {step}"
            )
            outcome = writer.save(next_step, state_of(self.recording.seed, next_step)).wait()
        self.require(
            outcome.durable and outcome.sequence > max(highest, sequence), where,
            f"the next save is {outcome.kind} with sequence {outcome.sequence}, after {highest} "
            f"in the file and {sequence} acknowledged",
        )  # fmt: skip
        self.require(self._load(copy, where) == next_step, where, "the next save is not the newest")
        self.counts["resumed"] += 1

    def finish(self) -> None:
        """Has pcfsck look at all the files that wait, and once more at what it repaired."""
        for mode, allowed in [("-p", {0, 1}), ("-n", {0})]:
            repaired = []
            for verdict, kept in zip(self._fsck(mode), self._waiting, strict=True):
                _, step, where = kept
                status, choice = verdict["exit_status"], verdict["resume"]["choice"]
                errors = [
                    (finding["id"], finding["slot"], finding["found"])
                    for finding in verdict["findings"]
                    if finding["severity"] == "error"
                ]
                self.require(
                    status in allowed, where, f"pcfsck {mode} exits with {status}: {errors}"
                )
                says = -1 if choice is None else choice["step"]
                self.require(says == step, where, f"pcfsck loads {says}, a load gave {step}")
                if status == 1:
                    repaired.append(kept)
            self.counts["repaired"] += len(repaired)
            self._waiting = repaired

    def _fsck(self, mode: str) -> list[dict[str, Any]]:
        if not self._waiting:
            return []
        done = command(
            PCFSCK, mode, "--verify", "full", "--json", *(path for path, _, _ in self._waiting)
        )
        return json.loads(done.stdout)["files"]
