"""Real file systems: writers killed at random times, file systems that die under a live writer.

Each file system is made in an image on a loop device. A child process (`crash_child.py`) saves
states and reports what was acknowledged. After each crash: pcfsck finds no error; the newest
checkpoint is at least the last one acknowledged, and holds exactly what that step saved; the next
writer opens the file, saves, and neither sequence nor generation has gone back.

PCCHECK_SOAK_SECONDS is how long all of this may take (what is not said takes about 80 s);
PCCHECK_SOAK_SEED replays the choices of a run, though not the timing of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from crash_child import CAPACITY, CHUNK, digest_of, state_of

import pccheck

PCFSCK = ROOT / "build" / "bin" / "pcfsck"
CHILD = Path(__file__).with_name("crash_child.py")

SEED = int(os.environ.get("PCCHECK_SOAK_SEED", "20260101"))
#: Three tests that kill and four that shut down share the time.
SHARE_SECONDS = float(os.environ.get("PCCHECK_SOAK_SECONDS", "0")) / 7
KILL_SECONDS = max(20.0, SHARE_SECONDS)
SHUTDOWN_COUNT = 3

IMAGE_BYTE_COUNT = 320 << 20  # xfs makes nothing smaller than 300 MiB
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


class Violation(AssertionError):
    """A promise of the format that was broken; the message says which, and how to replay it."""


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


class Disk:
    """A file system of its own on a loop device."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.mount_point = folder / "mounted"
        self.mount_point.mkdir()
        self.device: str | None = None
        self.is_mounted = False
        self._image = folder / "image"

    def make(self) -> None:
        """Skips the test, with the reason, where this machine cannot do it."""
        with open(self._image, "wb") as file:
            file.truncate(IMAGE_BYTE_COUNT)
        made = command(*MAKE[self.kind], self._image)
        assert made.returncode == 0, made.stderr
        attached = command("losetup", "--find", "--show", self._image)
        if attached.returncode != 0:
            pytest.skip(f"cannot attach a loop device here: {attached.stderr.strip()}")
        self.device = attached.stdout.strip()
        mounted = command("mount", "-t", self.kind, self.device, self.mount_point)
        if mounted.returncode != 0:
            pytest.skip(f"cannot mount {self.kind} here: {mounted.stderr.strip()}")
        self.is_mounted = True

    def shut_down(self, with_log_flush: bool) -> None:
        """Drops everything that the file system has not yet put on its device.

        With a log flush the finished transactions reach the device first, data in the page
        cache does not.
        """
        action = "shutdown -f" if with_log_flush else "shutdown"
        done = command("xfs_io", "-x", "-c", action, self.mount_point)
        assert done.returncode == 0 and not done.stderr, done.stderr

    def mount_again(self) -> None:
        self.unmount()
        done = command("mount", "-t", self.kind, self.device, self.mount_point)
        assert done.returncode == 0, done.stderr
        self.is_mounted = True

    def unmount(self) -> None:
        for _ in range(50):
            done = command("umount", self.mount_point)
            if done.returncode == 0:
                self.is_mounted = False
                return
            time.sleep(0.1)
        raise RuntimeError(done.stderr)

    def remove(self) -> None:
        """Leaves nothing mounted and nothing attached, whatever went wrong."""
        try:
            if self.is_mounted:
                self.unmount()
        finally:
            if self.device is not None:
                command("losetup", "-d", self.device)


@contextlib.contextmanager
def disk_of(kind: str, *tools: str) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    for tool in (MAKE[kind][0], "losetup", "mount", *tools):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing; run .ci/install-packages --with-soak")
    if not PCFSCK.exists():
        pytest.skip(f"{PCFSCK} is not built; run make tools")
    with tempfile.TemporaryDirectory(prefix="pccheck-disk-") as folder:
        disk = Disk(kind, Path(folder))
        try:
            disk.make()
            yield disk
        finally:
            disk.remove()


class Child:
    """A writer that has read its libraries and waits to be told what to write."""

    def __init__(self, acknowledge: str = "durable", preload: Path | None = None) -> None:
        environment = dict(os.environ)
        if preload is not None:
            environment["LD_PRELOAD"] = str(preload)
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), "--acknowledge", acknowledge],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self._lines: list[str] = []
        # Reads all the time, so that a full pipe never slows the writer down.
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        # A line without its end was cut by the kill: it was never reported.
        for line in self._process.stdout:
            if line.endswith("\n"):
                self._lines.append(line)

    def start(self, path: Path, seed: int, options: dict[str, Any]) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the child did not start"
        self._thread.start()
        request = {"path": str(path), "seed": seed, "options": options}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    def wait_for_a_line(self) -> None:
        """Returns when a save was acknowledged, or one failed."""
        began = time.monotonic()
        while not self._lines:
            assert time.monotonic() - began < 30, "the child saved nothing for 30 s"
            time.sleep(0.001)

    def kill(self) -> list[str]:
        """Ends the child without warning; returns the lines that it wrote before."""
        self._process.kill()
        self._process.wait()
        if self._thread.ident is not None:
            self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return self._lines


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
        self.backend = self.random.choice(["auto", "direct", "buffered", "io_uring"])
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
    # Short times meet the making and opening of the file, long ones many saves.
    delay = 0.4 ** trial.random.uniform(0.8, 5.5)
    child.start(trial.path, trial.data_seed, trial.run_options())
    time.sleep(delay)
    trial.check(child.kill())


def shut_down_once(trial: Trial, child: Child, with_log_flush: bool, **options: Any) -> None:
    """Takes the file system away from a live writer, and mounts what is left."""
    delay = 0.5 ** trial.random.uniform(1, 6)
    child.start(trial.path, trial.data_seed, {**trial.run_options(), **options})
    trial.backend = options.get("backend", trial.backend)
    # Every fourth comes while the file is made or opened.
    if trial.crash_count % 4 != 3:
        child.wait_for_a_line()
    time.sleep(delay)
    trial.disk.shut_down(with_log_flush)
    # Whatever is acknowledged from here on counts as well.
    time.sleep(trial.random.uniform(0, 0.1))
    lines = child.kill()
    trial.disk.mount_again()
    trial.check(lines)


@contextlib.contextmanager
def children(**options: Any) -> Iterator[Callable[[], Child]]:
    """Children, one started ahead while the last one is looked at; all are ended."""
    started = [Child(**options)]

    def take() -> Child:
        # The one before is dead by now.
        started.append(Child(**options))
        del started[:-2]
        return started[0]

    try:
        yield take
    finally:
        for child in started:
            child.kill()


def report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Shows what was done even when nothing failed."""
    with capsys.disabled():
        print(f"\n{text}")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_killed_writer_loses_nothing(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with disk_of(kind) as disk, children() as next_child:
        trial = Trial(disk, SEED, f"SIGKILL on {kind}")
        while time.monotonic() - began < KILL_SECONDS:
            # One file lives long; between its lives some are made anew.
            if trial.random.random() < 0.1:
                trial.new_file()
            kill_once(trial, next_child())
    report(capsys, trial.summary("kills", time.monotonic() - began))
    assert trial.crash_count >= 5 and trial.acknowledged_count > 10


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
        with pytest.raises(Violation, match="is lost|are lost") as caught:
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
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing; run .ci/install-packages")
    source, shim = tmp_path / "noflush.c", tmp_path / "noflush.so"
    source.write_text(
        "int fsync(int file) { (void)file; return 0; }\n"
        "int fdatasync(int file) { (void)file; return 0; }\n"
    )
    built = command(compiler, "-shared", "-fPIC", "-o", shim, source)
    assert built.returncode == 0, built.stderr
    # Buffered: O_DIRECT reaches the device without a flush, which a loop device never forgets.
    expect_caught(capsys, kind, "no flush", {"preload": shim}, {"backend": "buffered"})
