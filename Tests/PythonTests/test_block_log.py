"""Power cuts at every flush and between any two, from the log of what writers wrote to a disk.

Writers (`crash_child.py`) run on a disk of which QEMU logs every write and flush, with every back
end and a file of two checkpoints in flight: on the bare device, and in a file on ext4 and xfs.
Each acknowledgement comes with the length that the log had by then. From the log images of the disk
are made (`block_log.py`): all that was flushed, and any part of what was not. A file system on an
image is mounted, which replays its journal, and the file copied out of it. Then

- what loads is the newest checkpoint acknowledged before that point of the log, or a newer one,
  with the bytes that its step has;
- pcfsck repairs at most copies, finds nothing the second time, and says that a resume loads just
  that step;
- in some images the next writer opens the file, resumes from that step and saves, with a sequence
  that was not given before.

PCCHECK_SOAK_SECONDS is how long all of this may take; PCCHECK_SOAK_SEED replays the choices of a
run, though not the timing of the machine.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from block_log import CutDisk, Entry, read_log
from crash_child import CAPACITY, CHUNK, digest_of, state_of
from disks import (
    MAKE_SMALL,
    PCCHECK,
    PCFSCK,
    SMALL_IMAGE_BYTE_COUNT,
    command,
    loop_device,
    make_file_system,
    mounted,
    quick_folder,
    require,
    served_by_qemu,
)
from writers import BACKENDS, NO_FLUSH, NO_JOIN, SEED, SOAK_SECONDS, Violation, children, preloadable, report

import pccheck

#: The bare device and two file systems share the time.
SHARE_SECONDS = SOAK_SECONDS / 3
#: How long one recording is replayed before the next one is made.
RECORDING_SECONDS = 120
SAVES_PER_WRITER = 12
#: Four slots of 512 KiB and what belongs to them.
DEVICE_BYTE_COUNT = 4 << 20
FILE_NAME = "run.pcc"


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


@contextmanager
def logged_device(folder: Path, byte_count: int) -> Iterator[tuple[str, Path]]:
    """A loop device, and the log of what is written to it."""
    disk, log = folder / "disk", folder / "log"
    log.write_bytes(b"")
    with open(disk, "wb") as file:
        file.truncate(byte_count)
    nodes = [
        f"driver=file,node-name=disk,filename={disk},cache.no-flush=on",
        f"driver=file,node-name=log,filename={log},cache.no-flush=on",
        "driver=blklogwrites,node-name=logged,file=disk,log=log",
    ]
    with served_by_qemu(folder, nodes, byte_count) as device:
        yield device, log


def run_writers(
    recording: Recording, path: Path, log: Path, choices: random.Random,
    backends: list[str], **child: Any,
) -> None:  # fmt: skip
    """One writer after another, each killed in the middle of its saves."""
    options = {"in_flight": 2, "retain": choices.randint(1, 2)}
    if path.is_block_device():
        create_on(path, **options)
        recording.created_end = log.stat().st_size
    with children(**child) as next_child:
        for backend in backends:
            writer = next_child()
            codec = choices.choice(["none", "none", "zstd"])
            writer.start(path, recording.seed, {**options, "backend": backend, "codec": codec}, log)
            writer.wait_for_lines(SAVES_PER_WRITER)
            for words in (line.split() for line in writer.kill()):
                assert words[0] == "saved", " ".join(words)
                recording.promises.append(Promise(int(words[4]), int(words[1]), int(words[2])))


def create_on(device: Path, in_flight: int, retain: int) -> None:
    created = command(
        PCCHECK, "create", device, "--replace", "--capacity", CAPACITY.replace(" ", ""),
        "--chunk", CHUNK.replace(" ", ""), "--in-flight", in_flight, "--retain", retain,
    )  # fmt: skip
    assert created.returncode == 0, created.stderr


def record_on_device(folder: Path, seed: int, backends: list[str], **child: Any) -> Recording:
    recording = Recording(seed, DEVICE_BYTE_COUNT)
    choices = random.Random(f"{seed} device")
    with logged_device(folder, recording.byte_count) as (device, log):
        run_writers(recording, Path(device), log, choices, backends, **child)
    recording.entries = read_log(log)
    return recording


def record_on_file_system(
    kind: str, folder: Path, seed: int, backends: list[str], **child: Any
) -> Recording:
    recording = Recording(seed, SMALL_IMAGE_BYTE_COUNT)
    choices = random.Random(f"{seed} {kind}")
    with logged_device(folder, recording.byte_count) as (device, log):
        make_file_system(MAKE_SMALL[kind], device)
        with mounted(kind, device, folder / "mounted") as disk:
            recording.made_end = log.stat().st_size
            run_writers(recording, disk.mount_point / FILE_NAME, log, choices, backends, **child)
    recording.entries = read_log(log)
    return recording


@functools.lru_cache(maxsize=4096)
def expected_digest(seed: int, step: int) -> str:
    return digest_of(state_of(seed, step))


logging.getLogger("pccheck").setLevel(logging.ERROR)  # what it passes over is checked here


class Auditor:
    """Looks at one file after another, each as a power cut may have left it."""

    #: So many files wait for pcfsck, which takes longer to start than to look.
    BATCH_COUNT = 50

    def __init__(
        self, name: str, recording: Recording, folder: Path, fsck_interval: int
    ) -> None:
        """pcfsck looks at every so many files; of those, one in ten is opened for writing."""
        self.name = name
        self._fsck_interval = fsck_interval
        self.recording = recording
        self.image_count = 0
        self.newer_count = 0
        self.empty_count = 0
        self.repaired_count = 0
        self.resumed_count = 0
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
            self.empty_count += 1
            return
        try:
            step = self._load(path, where)
        except pccheck.NoCheckpoint as error:
            self.require(floor < 0, where, f"step {floor} was acknowledged and is lost: {error}")
            step = -1
            self.empty_count += 1
        except (pccheck.Corrupt, pccheck.NotACheckpointFile) as error:
            self.require(floor < 0, where, f"step {floor} was acknowledged and is lost: {error}")
            self.require(log_end < self.recording.created_end, where, f"cannot be opened: {error}")
            self.empty_count += 1
            return
        self.require(
            step >= floor, where, f"step {floor} was acknowledged and is lost; the newest is {step}"
        )
        self.newer_count += step > floor
        if self.image_count % self._fsck_interval == 0:
            self._keep(path, step, where)
            if self.image_count % (10 * self._fsck_interval) == 0:
                self._resume(step, sequence, where)
        if len(self._waiting) == self.BATCH_COUNT:
            self.finish()

    def _load(self, path: Path, where: str) -> int:
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
        with pccheck.Checkpointer(copy, backend="buffered") as writer:
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
        self.resumed_count += 1

    def finish(self) -> None:
        """Has pcfsck look at all the files that wait, and once more at what it repaired."""
        for mode, allowed in [("-p", {0, 1}), ("-n", {0})]:
            repaired = []
            for verdict, kept in zip(self._fsck(mode), self._waiting, strict=True):
                _, step, where = kept
                status, choice = verdict["exit_status"], verdict["resume"]["choice"]
                self.require(
                    status in allowed, where,
                    f"pcfsck {mode} exits with {status}: {json.dumps(verdict['findings'])}",
                )  # fmt: skip
                says = -1 if choice is None else choice["step"]
                self.require(says == step, where, f"pcfsck loads {says}, a load gave {step}")
                if status == 1:
                    repaired.append(kept)
            self.repaired_count += len(repaired)
            self._waiting = repaired

    def _fsck(self, mode: str) -> list[dict[str, Any]]:
        if not self._waiting:
            return []
        done = command(
            PCFSCK, mode, "--verify", "full", "--json", *(path for path, _, _ in self._waiting)
        )
        return json.loads(done.stdout)["files"]

    def summary(self, flush_count: int, seconds: float) -> str:
        return (
            f"{self.name}: {self.image_count} images of {flush_count} flushes, "
            f"{len(self.recording.promises)} saves acknowledged, newer than the last of them "
            f"{self.newer_count} times, nothing saved yet {self.empty_count} times, "
            f"{self.repaired_count} repaired, {self.resumed_count} resumed, 0 violations, "
            f"{seconds:.0f} s ({self.image_count / seconds:.0f} a second), seed {SEED}"
        )


LIBC = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, device: str, mount_point: Path) -> None:
    """mount(2) without a process of its own, thousands of times."""
    done = LIBC.mount(device.encode(), bytes(mount_point), kind.encode(), 0, None)
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), device)


def unmount(mount_point: Path) -> None:
    if LIBC.umount2(bytes(mount_point), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(mount_point))


class MountedFile:
    """The file that is on a disk after its file system has replayed its journal."""

    def __init__(self, kind: str, device: str, folder: Path) -> None:
        self.kind = kind
        self.device = device
        self._mount_point = folder / "replayed"
        self._mount_point.mkdir()
        self._copy = folder / "copy.pcc"

    def get(self) -> Path | None:
        mount(self.kind, self.device, self._mount_point)
        try:
            shutil.copyfile(self._mount_point / FILE_NAME, self._copy)
        except FileNotFoundError:
            return None
        finally:
            unmount(self._mount_point)
        return self._copy


@dataclass
class Rung:
    """Recordings of one kind of disk, and their replay for a while."""

    name: str
    folder: Path
    kind: str | None = None
    child: dict[str, Any] = field(default_factory=dict)
    backends: list[str] = field(default_factory=lambda: BACKENDS)

    def record(self, seed: int) -> Recording:
        if self.kind is None:
            return record_on_device(self.folder, seed, self.backends, **self.child)
        return record_on_file_system(self.kind, self.folder, seed, self.backends, **self.child)

    def replay(self, seed: int, image_count: int, seconds: float) -> str:
        """Looks at about so many images, and goes on with others for so long."""
        folder = self.folder / str(seed)
        folder.mkdir()
        began = time.monotonic()
        recording = self.record(seed)
        auditor = Auditor(self.name, recording, folder, 4 if self.kind is None else 1)
        choices = random.Random(f"{seed} {self.name} replay")
        disk = CutDisk(folder / "image", recording.byte_count, recording.entries)
        epoch_count = sum(
            entry.is_flush and entry.end > recording.made_end for entry in recording.entries
        )
        per_epoch = max(0.1, image_count / epoch_count - 1)
        with self._file_of(disk, folder) as get:
            while auditor.image_count == 0 or time.monotonic() - began < seconds:
                for log_end, where in disk.states(
                    choices, per_epoch, self.kind is None, recording.made_end
                ):
                    auditor.check(get(), log_end, where)
                auditor.finish()
        shutil.rmtree(folder)
        return auditor.summary(disk.flush_count, time.monotonic() - began)

    @contextmanager
    def _file_of(self, disk: CutDisk, folder: Path) -> Iterator[Any]:
        if self.kind is None:
            yield lambda: disk.path
            return
        with loop_device(disk.path) as device:
            yield MountedFile(self.kind, device, folder).get


KINDS = [None, "ext4", "xfs"]
IMAGE_COUNTS = {None: 1500, "ext4": 400, "xfs": 400}


@contextmanager
def rung(kind: str | None, **options: Any) -> Iterator[Rung]:
    tools = ["qemu-storage-daemon", *([MAKE_SMALL[kind][0]] if kind else [])]
    require(*tools)
    with quick_folder() as folder:
        yield Rung(f"power cuts on {kind or 'a bare device'}", folder, kind, **options)


@pytest.mark.parametrize("kind", KINDS, ids=["device", "ext4", "xfs"])
def test_power_cut_loses_nothing(kind: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with rung(kind) as disks:
        seed = SEED
        while seed == SEED or time.monotonic() - began < SHARE_SECONDS:
            left = SHARE_SECONDS - (time.monotonic() - began)
            report(
                capsys, disks.replay(seed, IMAGE_COUNTS[kind], min(RECORDING_SECONDS, left))
            )
            seed += 1


PLANTS = [
    # Of the page cache nothing at all reaches the disk without a flush.
    (None, "no-flush", NO_FLUSH, "direct"),
    ("ext4", "no-flush", NO_FLUSH, "direct"),
    ("xfs", "no-flush", NO_FLUSH, "direct"),
    (None, "no-join", NO_JOIN, "direct"),
    (None, "no-join", NO_JOIN, "buffered"),
]


@pytest.mark.parametrize(
    ("kind", "name", "source", "backend"), PLANTS,
    ids=[f"{name}-{kind or 'device'}-{backend}" for kind, name, _, backend in PLANTS],
)  # fmt: skip
def test_power_cut_catches(
    kind: str | None, name: str, source: str, backend: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The library as it is, above a C library that does less than it says."""
    shim = preloadable(tmp_path, name, source)
    with rung(kind, child={"preload": shim}, backends=[backend]) as disks:
        # Either what was acknowledged is gone, or a flushed superblock names what is not there.
        with pytest.raises(Violation, match="is lost|are lost|cannot be opened") as caught:
            disks.replay(SEED, IMAGE_COUNTS[kind], 0)
        report(capsys, f"{name} on {backend}, caught: {caught.value}")
