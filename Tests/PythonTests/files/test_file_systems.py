"""Real file systems: writers killed at random times, file systems that die under a live writer.

Each file system is made in an image on a loop device. A child process (`crash_child.py`) saves
states and reports what was acknowledged. After each crash: pcfsck finds no error; the newest
checkpoint is at least the last one acknowledged, and holds exactly what that step saved; the next
writer opens the file, saves, and neither sequence nor generation has gone back.

PCCHECK_SOAK_SECONDS is how long all of this may take (what is not said takes about 80 s);
PCCHECK_SOAK_SEED replays the choices of a run, though not the timing of the machine.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from crash_child import CAPACITY, CHUNK, digest_of, state_of
from disks import PCFSCK, Disk, command, disk_of
from writers import (
    BACKENDS,
    LOSS,
    NO_FLUSH,
    SEED,
    SOAK_SECONDS,
    Child,
    Violation,
    children,
    preloadable,
    report,
)

import pccheck

#: Three tests that kill and four that shut down share the time.
SHARE_SECONDS = SOAK_SECONDS / 7
#: At least so many of each, however slow the machine is.
KILL_COUNT = 50
SHUTDOWN_COUNT = 20


@dataclass
class Trial:
    """One disk, one file after another on it, and what must be true of the file that is there."""

    disk: Disk
    seed: int
    name: str
    random: random.Random = field(init=False)
    crash_count: int = 0
    file_count: int = 0
    acknowledged_count: int = 0
    newer_count: int = 0
    longest_lock_seconds: float = 0
    backend: str = "none"
    # Of the file that is there:
    acknowledged_step: int = -1
    sequence: int = 0
    generation: int = 0
    must_exist: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed} {self.name}")
        self.new_file()

    @property
    def path(self) -> Path:
        return self.disk.mount_point / f"run-{self.file_count}.pcc"

    @property
    def data_seed(self) -> int:
        return self.seed * 1000 + self.file_count

    def new_file(self) -> None:
        """Begins another file; the next child makes it, and may die while it does."""
        self.file_count += 1
        self.acknowledged_step, self.sequence, self.generation = -1, 0, 0
        self.must_exist = False
        self.options = {
            "in_flight": self.random.randint(1, 3),
            "retain": self.random.randint(1, 2),
        }
        for old in self.disk.mount_point.glob("run-*"):
            old.unlink()

    def run_options(self) -> dict[str, Any]:
        self.backend = self.random.choice(BACKENDS)
        return {
            **self.options,
            "backend": self.backend,
            "codec": self.random.choice(["none", "none", "zstd"]),
        }

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            raise Violation(
                f"{self.name}, crash {self.crash_count}, file {self.file_count}: {text}; "
                f"replay with PCCHECK_SOAK_SEED={self.seed}"
            )

    def check(self, lines: list[str]) -> None:
        """What holds after every crash."""
        self.crash_count += 1
        digests = {}
        for words in (line.split() for line in lines):
            if words[0] == "saved":
                step, sequence = int(words[1]), int(words[2])
                digests[step] = words[3]
                self.acknowledged_step = max(self.acknowledged_step, step)
                self.sequence = max(self.sequence, sequence)
                self.must_exist = True
        self.acknowledged_count += len(digests)
        if not self.path.exists():
            self.require(not self.must_exist, "the file is gone, acknowledged saves are lost")
            return
        self.must_exist = True
        for _ in range(2):
            fsck = command(PCFSCK, "--verify", "full", self.path)
            self.require(
                fsck.returncode == 0, f"pcfsck exits with {fsck.returncode}: {fsck.stdout}"
            )
        before = pccheck.report(self.path)
        self.require(before["generation"] >= self.generation, "the generation went back")
        with self.open_writer() as writer:
            next_step, state = writer.resume()
            self.check_state(next_step - 1, state, digests)
            self.require(
                before["highest_sequence"] >= self.sequence,
                f"sequence {self.sequence} was acknowledged and is lost; "
                f"the highest is {before['highest_sequence']}",
            )
            outcome = writer.save(next_step, state_of(self.data_seed, next_step)).wait()
            self.require(outcome.durable, f"the next save is {outcome.kind}")
            self.require(
                outcome.sequence > before["highest_sequence"],
                f"sequence {outcome.sequence} comes after {before['highest_sequence']}",
            )
        after = pccheck.report(self.path)
        self.require(
            after["generation"] > before["generation"], "the generation is no higher than before"
        )
        self.acknowledged_step, self.sequence = next_step, after["highest_sequence"]
        self.generation = after["generation"]

    def open_writer(self) -> pccheck.Checkpointer:
        """The next writer, at once: a dead process keeps nobody out.

        The kernel takes a killed process's io_uring apart a little later than the process, up to
        0.1 s on Linux 6.18, and until then the ring holds the file's lock; opening waits for that.
        """
        began = time.monotonic()
        try:
            writer = pccheck.Checkpointer(self.path, backend="auto")
        except pccheck.Locked as error:
            raise AssertionError(f"locked though the {self.backend} writer is dead: {error}")
        self.longest_lock_seconds = max(self.longest_lock_seconds, time.monotonic() - began)
        return writer

    def check_state(self, step: int, state: Any, digests: dict[int, str]) -> None:
        self.require(
            step >= self.acknowledged_step,
            f"step {self.acknowledged_step} was acknowledged and is lost; the newest is {step}",
        )
        self.newer_count += step > self.acknowledged_step
        if step < 0:
            self.require(state is None, "there is a state, and no step")
            return
        found, expected = digest_of(state), digest_of(state_of(self.data_seed, step))
        self.require(
            found == expected == digests.get(step, expected),
            f"step {step} has the digest {found}, expected {expected}",
        )

    def summary(self, what: str, seconds: float) -> str:
        return (
            f"{self.name}: {self.crash_count} {what}, {self.file_count} files, "
            f"{self.acknowledged_count} saves acknowledged, newer than the last of them "
            f"{self.newer_count} times, opened within {self.longest_lock_seconds:.2f} s, "
            f"0 violations, {seconds:.0f} s, seed {self.seed}"
        )


def kill_once(trial: Trial, child: Child) -> None:
    """Kills a writer at any time from its first instruction on the file."""
    # Short times meet the making and opening of the file, long ones many saves. On a busy machine
    # no time is long: half of the writers have made a save when theirs begins.
    delay = 0.4 ** trial.random.uniform(0.8, 5.5)
    child.start(trial.path, trial.data_seed, trial.run_options())
    if trial.crash_count % 2 == 1:
        child.wait_for_lines()
    time.sleep(delay)
    trial.check(child.kill())


def shut_down_once(trial: Trial, child: Child, with_log_flush: bool, **options: Any) -> None:
    """Takes the file system away from a live writer, and mounts what is left."""
    delay = 0.5 ** trial.random.uniform(1, 6)
    child.start(trial.path, trial.data_seed, {**trial.run_options(), **options})
    trial.backend = options.get("backend", trial.backend)
    # Every fourth comes while the file is made or opened.
    if trial.crash_count % 4 != 3:
        child.wait_for_lines()
    time.sleep(delay)
    trial.disk.shut_down(with_log_flush)
    # Whatever is acknowledged from here on counts as well.
    time.sleep(trial.random.uniform(0, 0.1))
    lines = child.kill()
    trial.disk.mount_again()
    trial.check(lines)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_killed_writer_loses_nothing(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with disk_of(kind) as disk, children() as next_child:
        trial = Trial(disk, SEED, f"SIGKILL on {kind}")
        while trial.crash_count < KILL_COUNT or time.monotonic() - began < SHARE_SECONDS:
            # One file lives long; between its lives some are made anew.
            if trial.random.random() < 0.1:
                trial.new_file()
            kill_once(trial, next_child())
    report(capsys, trial.summary("kills", time.monotonic() - began))
    assert trial.acknowledged_count > 10


@pytest.mark.parametrize("with_log_flush", [False, True], ids=["drop", "log-flush"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_file_system_shutdown_loses_nothing(
    kind: str, with_log_flush: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    with disk_of(kind, "xfs_io") as disk, children() as next_child:
        how = "with" if with_log_flush else "without"
        trial = Trial(disk, SEED, f"shutdown {how} log flush on {kind}")
        while trial.crash_count < SHUTDOWN_COUNT or time.monotonic() - began < SHARE_SECONDS:
            if trial.random.random() < 0.2:
                trial.new_file()
            shut_down_once(trial, next_child(), with_log_flush)
    report(capsys, trial.summary("shutdowns", time.monotonic() - began))
    assert trial.acknowledged_count > 0


def expect_caught(
    capsys: pytest.CaptureFixture[str], kind: str, name: str, child: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """A writer that promises too much is found out, or the shutdowns prove nothing."""
    with disk_of(kind, "xfs_io") as disk, children(**child) as next_child:
        trial = Trial(disk, SEED, f"{name} on {kind}")
        with pccheck.Checkpointer(
            trial.path, capacity=CAPACITY, chunk=CHUNK, **trial.options
        ) as writer:
            writer.save(0, state_of(trial.data_seed, 0)).wait()
        with pytest.raises(Violation, match=LOSS) as caught:
            for _ in range(10):
                shut_down_once(trial, next_child(), False, **options)
        report(capsys, f"caught at shutdown {trial.crash_count}: {caught.value}")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_shutdown_catches_a_promise_made_when_staged(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_caught(capsys, kind, "staged for durable", {"acknowledge": "staged"}, {})


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_shutdown_catches_a_missing_flush(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library as it is, above a C library whose flushes do nothing."""
    shim = preloadable(tmp_path, "noflush", NO_FLUSH)
    # Buffered: O_DIRECT reaches the device without a flush, which a loop device never forgets.
    expect_caught(capsys, kind, "no flush", {"preload": shim}, {"backend": "buffered"})
