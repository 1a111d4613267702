"""A disk that fails a flush or a write, once or from then on, below a live writer.

QEMU's ``blkdebug`` answers a request with EIO. The kernel then reports the failure once: the next
fsync succeeds, and what the failed one should have covered may be gone. Two kinds of disk:

- A bare device of which every write is logged (`block_log.py`). From the log images are made as
  after a power cut, of a disk that lost any part of what the failed flush should have covered, for
  good. What was acknowledged before and after must be in all of them. The log also says what the
  writer did next: a slot with writes below a failed F1 holds no later durable checkpoint, and
  after a failed F2 there is none at all.
- A file on ext4 or xfs. With a write that fails in the writeback of the page cache, the disk holds
  old bytes while the page cache calls the new ones clean. Afterwards the disk is mounted anew,
  without what was in memory.

A library that asks again when a flush fails, and believes the answer, must be found out.
"""

from __future__ import annotations

import random
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audits import Auditor, Promise, Recording
from block_log import SECTOR, CutDisk, Entry, read_log
from disks import (
    MAKE_SMALL,
    SMALL_IMAGE_BYTE_COUNT,
    disk_node,
    failing_disk,
    logged_device,
    loop_device,
    make_file_system,
    mounted,
    new_disk,
    quick_folder,
    require,
    served_by_qemu,
)
from reader import Identity
from writers import (
    DEVICE_BYTE_COUNT,
    LOSS,
    SEED,
    SOAK_SECONDS,
    Child,
    Violation,
    children,
    create_on,
    preloadable,
    report,
)

#: The bare device and two file systems share the time.
SHARE_SECONDS = SOAK_SECONDS / 3
BACKENDS = ["direct", "buffered", "io_uring"]
FILE_NAME = "run.pcc"

#: A flush that fails is asked for again, and believed. LEFT flushes later the process dies, when
#: it is not negative: the power is cut while what was lost is still the newest.
RETRY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <unistd.h>

static int left = -1;

static int again(const char *name, int file) {
    int (*next)(int) = dlsym(RTLD_NEXT, name);
    if (left == 0) usleep(100000), kill(getpid(), SIGKILL); /* what is durable is said first */
    if (left > 0) left--;
    if (next(file) == 0 || errno != EIO) return 0;
    left = LEFT;
    return next(file);
}

int fsync(int file) { return again("fsync", file); }
int fdatasync(int file) { return again("fdatasync", file); }
"""


def run_to_the_end(
    writer: Child, path: Path, seed: int, options: dict[str, Any], log: Path | None = None
) -> tuple[list[Promise], int]:
    """Saves until the writer takes no more, or long enough; what it promised, and how many
    saves failed."""
    more = {} if log is None else {"log": str(log)}
    writer.start(path, seed, options, goes_on=True, **more)
    writer.wait_for_lines(40, last_word="ended")
    promises, failed_count = [], 0
    for words in (line.split() for line in writer.kill()):
        if words[0] == "saved":
            end = int(words[4]) if log is not None else 0
            promises.append(Promise(end, int(words[1]), int(words[2])))
        else:
            failed_count += 1
    return promises, failed_count


@dataclass
class Layout:
    """Where a write to a device belongs in the file that fills it."""

    identity: Identity

    def is_superblock(self, entry: Entry) -> bool:
        offset, last = entry.sector * SECTOR, self.identity.file_byte_count
        return offset in (4096, 8192, last - 12288, last - 8192)

    def slot(self, entry: Entry) -> int | None:
        offset, found = entry.sector * SECTOR, self.identity
        if offset < found.metadata_offset or self.is_superblock(entry):
            return None
        if offset < found.data_offset:
            return (offset - found.metadata_offset) // found.metadata_stride
        slot = (offset - found.data_offset) // found.data_stride
        return slot if slot < found.slot_count else None

    def sealed(self, entry: Entry) -> int | None:
        """The sequence of a write that completes a checkpoint."""
        data = entry.data[:1].tobytes()
        if data[:8] != b"PCKSLOTH":
            return None
        state, sequence = struct.unpack_from("<IQ", data, 36)
        return sequence if state == 2 else None


def check_what_came_after(
    recording: Recording, layout: Layout, failed: int, is_persistent: bool
) -> str:
    """From the log alone; says which barrier it was."""
    entries = recording.entries
    begin = max((i for i in range(failed) if entries[i].is_flush), default=-1) + 1
    uncovered = entries[begin:failed]
    is_f2 = any(layout.is_superblock(entry) for entry in uncovered)
    suspect = {layout.slot(entry) for entry in uncovered}
    promised = {promise.sequence for promise in recording.promises}
    for entry in entries[failed:]:
        sequence, slot = layout.sealed(entry), layout.slot(entry)
        if sequence not in promised:
            continue
        if is_f2 or is_persistent or slot in suspect:
            raise Violation(
                f"sequence {sequence} in slot {slot} was acknowledged after flush {failed} failed, "
                f"which should have covered slots {suspect}"
            )
    return "F2" if is_f2 else "F1"


class DeviceRung:
    """Flushes that fail on a bare device."""

    def __init__(self, folder: Path, next_child: Callable[[], Child]) -> None:
        self._folder = folder
        self._next_child = next_child
        self.trial_count = 0
        self.unnoticed_count = 0
        self.counts: Counter[str] = Counter()

    def run(self, seed: int, backend: str, is_persistent: bool) -> None:
        self.trial_count += 1
        choices = random.Random(f"{seed} failed flush on {backend}")
        # The first two are those of the creation.
        ordinal = choices.randint(3, 24)
        name = f"flush {ordinal} fails {'for ever' if is_persistent else 'once'} on {backend}"
        recording = Recording(seed, DEVICE_BYTE_COUNT)
        failing = failing_disk("flush_to_disk", ordinal, is_persistent)
        with logged_device(self._folder, recording.byte_count, failing) as (device, log):
            create_on(Path(device), in_flight=3, retain=choices.randint(1, 2))
            recording.created_end = log.stat().st_size
            options = {"in_flight": 3, "backend": backend}
            recording.promises, failed_count = run_to_the_end(
                self._next_child(), Path(device), seed, options, log
            )
        recording.entries = read_log(log)
        flushes = [i for i, entry in enumerate(recording.entries) if entry.is_flush]
        assert len(flushes) >= ordinal, f"{name}: there were {len(flushes)} flushes"
        self.unnoticed_count += failed_count == 0
        failed = flushes[ordinal - 1 :] if is_persistent else [flushes[ordinal - 1]]
        if backend == "buffered":
            # The kernel writes pages when it likes: the log does not say when the writer did.
            barrier = "some barrier"
        else:
            first_block = (self._folder / "disk").read_bytes()[:4096]
            layout = Layout(Identity.decode(first_block))
            barrier = check_what_came_after(recording, layout, failed[0], is_persistent)
        self.counts[barrier] += 1
        self.counts["saved"] += len(recording.promises)
        self.counts["failed"] += failed_count
        self.counts["images"] += self._replay(recording, frozenset(failed), name, choices)

    def _replay(
        self, recording: Recording, failed: frozenset[int], name: str, choices: random.Random
    ) -> int:
        folder = self._folder / "replay"
        folder.mkdir()
        auditor = Auditor(name, recording, folder, fsck_interval=2)
        disk = CutDisk(folder / "image", recording.byte_count, recording.entries, failed=failed)
        # The disk loses something else in each pass.
        for _ in range(4):
            for log_end, what in disk.states(choices, 0.5, recording.created_end):
                auditor.check(disk.path, log_end, what)
        auditor.finish()
        shutil.rmtree(folder)
        return auditor.image_count

    def summary(self, seconds: float) -> str:
        count = self.counts
        return (
            f"failed flushes on a bare device: {self.trial_count}, {count['F1']} F1, "
            f"{count['F2']} F2, {count['some barrier']} under the page cache; "
            f"{count['saved']} saves acknowledged, {count['failed']} failed, "
            f"{count['images']} images, 0 violations, {seconds:.0f} s, seed {SEED}"
        )


class FileSystemRung:
    """Flushes and writes that fail below a file system."""

    def __init__(
        self, kind: str, folder: Path, next_child: Callable[[], Child], in_flight: int = 3
    ) -> None:
        self._kind = kind
        self._in_flight = in_flight
        self._folder = folder
        self._next_child = next_child
        self.trial_count = 0
        self.noticed_count = 0
        self.saved_count = 0
        self.failed_count = 0

    def run(self, seed: int, backend: str, event: str, is_persistent: bool) -> None:
        self.trial_count += 1
        choices = random.Random(f"{seed} {event} on {self._kind} {backend}")
        # Beyond those of the mount.
        ordinal = choices.randint(6, 24) if event.startswith("flush") else choices.randint(30, 90)
        often = "for ever" if is_persistent else "once"
        name = f"{event} {ordinal} fails {often} on {self._kind}, {backend}"
        retain = choices.randint(1, 2)
        options = {"in_flight": self._in_flight, "retain": retain, "backend": backend}
        recording = Recording(seed, SMALL_IMAGE_BYTE_COUNT)
        disk = new_disk(self._folder, recording.byte_count)
        make_file_system(MAKE_SMALL[self._kind], disk)
        place = self._folder / "mounted"
        with loop_device(disk) as device, mounted(self._kind, device, place):
            writer = self._next_child()
            writer.start(place / FILE_NAME, seed, options)
            writer.wait_for_lines(4)
            recording.promises = [
                Promise(0, int(words[1]), int(words[2]))
                for words in (line.split() for line in writer.kill())
            ]
        nodes = [
            disk_node(self._folder),
            failing_disk(event, ordinal, is_persistent),
            # A node tells the one below it that it flushes.
            "driver=raw,node-name=top,file=failing",
        ]
        with (
            served_by_qemu(self._folder, nodes, recording.byte_count) as device,
            mounted(self._kind, device, place),
        ):
            promises, failed_count = run_to_the_end(
                self._next_child(), place / FILE_NAME, seed, options
            )
        recording.promises += promises
        self.saved_count += len(recording.promises)
        self.failed_count += failed_count
        self.noticed_count += failed_count > 0
        self._check(recording, name, disk, place)

    def _check(self, recording: Recording, name: str, disk: Path, place: Path) -> None:
        """What is on the disk when nothing is in memory any more."""
        folder = self._folder / "audit"
        folder.mkdir()
        auditor = Auditor(name, recording, folder, fsck_interval=1, resume_interval=1)
        with loop_device(disk) as device, mounted(self._kind, device, place):
            auditor.check(place / FILE_NAME, 0, "mounted anew")
            auditor.finish()
        shutil.rmtree(folder)

    def summary(self, seconds: float) -> str:
        return (
            f"failed flushes and writes on {self._kind}: {self.trial_count}, "
            f"{self.noticed_count} seen by the writer, {self.saved_count} saves acknowledged, "
            f"{self.failed_count} failed, 0 violations, {seconds:.0f} s, seed {SEED}"
        )


def test_failed_flush_on_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    require("qemu-storage-daemon")
    began = time.monotonic()
    with quick_folder() as folder, children() as next_child:
        rung = DeviceRung(folder, next_child)
        seed = SEED
        while seed < SEED + 2 or time.monotonic() - began < SHARE_SECONDS:
            for backend in BACKENDS:
                rung.run(seed, backend, is_persistent=(seed - SEED) % 2 == 1)
            seed += 1
    report(capsys, rung.summary(time.monotonic() - began))
    assert rung.counts["saved"] > 0 and rung.unnoticed_count == 0


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_failed_flush_below_a_file_system(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    require("qemu-storage-daemon", MAKE_SMALL[kind][0])
    began = time.monotonic()
    with quick_folder() as folder, children() as next_child:
        rung = FileSystemRung(kind, folder, next_child)
        seed = SEED
        while seed == SEED or time.monotonic() - began < SHARE_SECONDS:
            for backend in ["direct", "buffered"]:
                for event in ["flush_to_disk", "pwritev"]:
                    rung.run(seed, backend, event, is_persistent=(seed - SEED) % 2 == 1)
            rung.run(seed, "buffered", "flush_to_disk", is_persistent=(seed - SEED) % 2 == 0)
            seed += 1
    report(capsys, rung.summary(time.monotonic() - began))
    assert rung.saved_count > 0
    # The file system's own flushes may be the ones that fail.
    assert rung.noticed_count * 2 > rung.trial_count


def say_caught(
    capsys: pytest.CaptureFixture[str], trial_count: int, violation: Violation
) -> None:
    report(capsys, f"retry, caught at failure {trial_count}: {str(violation)[:200]}")


@pytest.mark.parametrize("backend", ["direct", "buffered"])
def test_retried_flush_is_caught(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library as it is, above a C library that asks again and believes the answer."""
    require("qemu-storage-daemon")
    shim = preloadable(tmp_path, "retry", RETRY.replace("LEFT", "-1"))
    with quick_folder() as folder, children(preload=shim) as next_child:
        rung = DeviceRung(folder, next_child)
        with pytest.raises(Violation, match=LOSS) as caught:
            for seed in range(SEED, SEED + 5):
                rung.run(seed, backend, is_persistent=False)
        say_caught(capsys, rung.trial_count, caught.value)


def test_retried_writeback_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page cache calls clean what the disk refused."""
    require("qemu-storage-daemon", MAKE_SMALL["ext4"][0])
    shim = preloadable(tmp_path, "retry", RETRY.replace("LEFT", "1"))
    with quick_folder() as folder, children(preload=shim) as next_child:
        # One at a time, so that what fails is a part of what is acknowledged next.
        rung = FileSystemRung("ext4", folder, next_child, in_flight=1)
        with pytest.raises(Violation, match=LOSS) as caught:
            for seed in range(SEED, SEED + 10):
                rung.run(seed, "buffered", "pwritev", is_persistent=False)
        say_caught(capsys, rung.trial_count, caught.value)
