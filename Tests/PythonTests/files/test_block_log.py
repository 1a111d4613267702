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
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from audits import Auditor, Promise, Recording
from block_log import CutDisk, read_log
from disks import (
    MAKE_SMALL,
    SMALL_IMAGE_BYTE_COUNT,
    logged_device,
    loop_device,
    make_file_system,
    mounted,
    quick_folder,
    require,
)
from writers import (
    BACKENDS,
    DEVICE_BYTE_COUNT,
    LOSS,
    NO_FLUSH,
    NO_JOIN,
    SEED,
    SOAK_SECONDS,
    Violation,
    children,
    create_on,
    preloadable,
    report,
)

#: The bare device and two file systems share the time.
SHARE_SECONDS = SOAK_SECONDS / 3
#: How long one recording is replayed before the next one is made.
RECORDING_SECONDS = 120
SAVES_PER_WRITER = 12
FILE_NAME = "run.pcc"


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
            chosen = {**options, "backend": backend, "codec": codec}
            writer.start(path, recording.seed, chosen, log=str(log))
            writer.wait_for_lines(SAVES_PER_WRITER)
            for words in (line.split() for line in writer.kill()):
                assert words[0] == "saved", " ".join(words)
                recording.promises.append(Promise(int(words[4]), int(words[1]), int(words[2])))


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
    counts: Counter[str] = field(default_factory=Counter)

    def record(self, seed: int) -> Recording:
        if self.kind is None:
            return record_on_device(self.folder, seed, self.backends, **self.child)
        return record_on_file_system(self.kind, self.folder, seed, self.backends, **self.child)

    def replay(self, seed: int, image_count: int, seconds: float) -> None:
        """Looks at about so many images, and goes on with others for so long."""
        folder = self.folder / str(seed)
        folder.mkdir()
        began = time.monotonic()
        recording = self.record(seed)
        auditor = Auditor(self.name, recording, folder, 4 if self.kind is None else 1)
        choices = random.Random(f"{seed} {self.name} replay")
        disk = CutDisk(
            folder / "image", recording.byte_count, recording.entries,
            with_garbage=self.kind is None, whole_below=WHOLE_BELOW.get(self.kind, 0),
        )  # fmt: skip
        epoch_count = sum(
            entry.is_flush and entry.end > recording.made_end for entry in recording.entries
        )
        per_epoch = max(0.1, image_count / epoch_count - 1)
        with self._file_of(disk, folder) as get:
            while auditor.image_count == 0 or time.monotonic() - began < seconds:
                for log_end, where in disk.states(choices, per_epoch, recording.made_end):
                    try:
                        path = get()
                    except OSError as error:
                        raise Violation(
                            f"{self.name}, {where}: the file system does not mount: {error}; "
                            f"replay with PCCHECK_SOAK_SEED={SEED}"
                        )
                    auditor.check(path, log_end, where)
                auditor.finish()
        shutil.rmtree(folder)
        self.counts += auditor.counts
        self.counts += Counter(
            images=auditor.image_count, flushes=epoch_count, recordings=1,
            saves=len(recording.promises),
        )  # fmt: skip

    def summary(self, seconds: float) -> str:
        count = self.counts
        return (
            f"{self.name}: {count['images']} images of {count['flushes']} flushes in "
            f"{count['recordings']} recordings, {count['saves']} saves acknowledged, newer than "
            f"the last of them {count['newer']} times, nothing saved yet {count['empty']} times, "
            f"{count['repaired']} repaired, {count['resumed']} resumed, 0 violations, "
            f"{seconds:.0f} s ({count['images'] / seconds:.0f} a second), seed {SEED}"
        )

    @contextmanager
    def _file_of(self, disk: CutDisk, folder: Path) -> Iterator[Any]:
        if self.kind is None:
            yield lambda: disk.path
            return
        with loop_device(disk.path) as device:
            yield MountedFile(self.kind, device, folder).get


#: ext4 writes its superblock in place, with a checksum across two sectors, and mounts no other
#: copy: it needs that one block whole.
WHOLE_BELOW: dict[str | None, int] = {"ext4": 8}
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
            disks.replay(seed, IMAGE_COUNTS[kind], min(RECORDING_SECONDS, left))
            seed += 1
        report(capsys, disks.summary(time.monotonic() - began))


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
        with pytest.raises(Violation, match=LOSS) as caught:
            disks.replay(SEED, IMAGE_COUNTS[kind], 0)
        report(capsys, f"{name} on {backend}, caught: {caught.value}")
