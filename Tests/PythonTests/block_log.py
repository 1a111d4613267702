"""The write log of a block device, and the disks that a power cut may leave of it.

qemu-storage-daemon's driver ``blklogwrites`` writes every request to a file, in the format of the
Linux kernel's dm-log-writes (include/linux/dm-log-writes.h of its user-space tools). All numbers
are little-endian, and everything begins at a multiple of the sector size:

    superblock   magic, version, entry count: u64 each; sector size: u32; rest of the sector unused
    entry        sector, sector count, flags, byte count of data: u64 each; rest unused
    its data     sector count sectors, unless the flags say DISCARD

QEMU rewrites the entry count at every flush only, so entries are read to the end of the log.

**What a flush covers.** QEMU gives a write its place in the log when the write is complete, and
before it says so; a flush when the flush is complete. The disk below is one whose flushes take no
time (``cache.no-flush``), and the loop device above asks for one thing at a time. So what stands
before a flush was complete before that flush reached the device, and every write whose completion
anybody had seen by then stands before it. Each flush covers exactly the writes before it:

- not less, so that correct code cannot fail: what code waited for before it asked for a flush was
  complete, and stands before the flush;
- not more than a real disk does: a write that the device had not completed when the flush came
  stands behind it, and may be lost.

A flush that QEMU leaves out as redundant had nothing to cover: no write had completed since the
last one. Other schedules of the same code, in which a flush overtakes a write that is still on its
way to the device, come with other recordings.
"""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512


@dataclass(frozen=True)
class Entry:
    """A write, a flush, or both; a write is rows of one sector."""

    is_flush: bool
    sector: int
    data: np.ndarray
    #: Where it ends in the log: all of it is there when the log is that long.
    end: int


def read_log(path: Path) -> list[Entry]:
    content = np.memmap(path, np.uint8, "r")
    magic, version, _, sector = struct.unpack_from("<QQQI", content)
    assert (magic, version, sector) == (MAGIC, 1, SECTOR), (magic, version, sector)
    entries, position = [], SECTOR
    while position < len(content):
        first, count, flags, _ = struct.unpack_from("<QQQQ", content, position)
        # The kernel makes flushes out of FUA for a device that says nothing of FUA, and QEMU
        # makes no marks: what is not expected is not guessed at.
        assert flags & ~(FLUSH | DISCARD) == 0, f"flags {flags} at byte {position} of the log"
        position += SECTOR
        if flags & DISCARD:
            # A file with a hole in it: what is discarded reads as zeros.
            data = np.broadcast_to(np.zeros(SECTOR, np.uint8), (count, SECTOR))
        else:
            data = content[position : position + count * SECTOR].reshape(count, SECTOR)
            position += count * SECTOR
        entries.append(Entry(bool(flags & FLUSH), first, data, position))
    return entries


class CutDisk:
    """A disk in a file, as it may be after a power cut at some entry of a log."""

    def __init__(
        self, path: Path, byte_count: int, entries: list[Entry],
        with_garbage: bool = False, failed: frozenset[int] = frozenset(), whole_below: int = 0,
    ) -> None:  # fmt: skip
        """``with_garbage``: the sector that was being written when the power went may hold
        anything. ``failed``: the entries of flushes that failed; the disk may have lost any part
        of what they should have covered, for good, whatever a later flush says. ``whole_below``:
        what is written at sectors below is there whole or not at all.
        """
        self.path = path
        self._with_garbage = with_garbage
        self._failed = failed
        self._whole_below = whole_below
        self._entries = entries
        with open(path, "w+b") as file:
            file.truncate(byte_count)
            # Shared with whoever opens or mounts the file.
            self._disk = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8).reshape(-1, SECTOR)
        self._flushed = np.zeros_like(self._disk)

    def states(
        self, choices: random.Random, per_epoch: float, begin: int = 0
    ) -> Iterator[tuple[int, str]]:
        """Puts one state after another into the file; gives the end of the last entry that
        had happened by then, and what was done.

        These are the state at every flush, with all that it covers; and, ``per_epoch`` times
        between two flushes on average, states with any subset of the writes since the last one.
        ``begin`` is how long the log was when there was something to lose.
        """
        first = 0
        self._flushed[:] = 0
        flushes = [index for index, entry in enumerate(self._entries) if entry.is_flush]
        for index in [*flushes, len(self._entries)]:
            end = self._entries[min(index, len(self._entries) - 1)].end
            if index > first and end > begin:
                count = int(per_epoch) + (choices.random() < per_epoch % 1)
                for _ in range(count):
                    yield self._lose(first, index, choices)
            if index == len(self._entries):
                return
            if index in self._failed:
                kept = self._scatter(self._flushed, first, index, choices)
                what = f"flush {index} failed and kept {kept}"
            else:
                what = f"all up to flush {index}"
                for done in self._entries[first : index + 1]:
                    self._flushed[done.sector : done.sector + len(done.data)] = done.data
            first = index + 1
            if end > begin:
                self._disk[:] = self._flushed
                yield end, what

    def _lose(self, first: int, flush: int, choices: random.Random) -> tuple[int, str]:
        cut = flush if choices.random() < 0.5 else choices.randint(first + 1, flush)
        self._disk[:] = self._flushed
        what = self._scatter(self._disk, first, cut, choices)
        return self._entries[cut - 1].end, what

    def _scatter(self, disk: np.ndarray, first: int, end: int, choices: random.Random) -> str:
        """Some of these writes, in any order, each perhaps torn."""
        lost_share = choices.choice([0.1, 0.5, 0.9])
        order = [index for index in range(first, end) if choices.random() >= lost_share]
        choices.shuffle(order)
        torn_share = choices.choice([0, 0.2, 0.8])
        for index in order:
            entry = self._entries[index]
            place = disk[entry.sector : entry.sector + len(entry.data)]
            if choices.random() < torn_share and entry.sector >= self._whole_below:
                self._tear(place, entry.data, choices)
            else:
                place[:] = entry.data
        return f"{len(order)} of the writes {first} to {end - 1}"

    def _tear(self, place: np.ndarray, data: np.ndarray, choices: random.Random) -> None:
        count = len(data)
        at = choices.randint(0, count)
        match choices.choice(["begin", "end", "any"]):
            case "begin":
                arrived = np.arange(count) < at
            case "end":
                arrived = np.arange(count) >= at
            case _:
                draw = np.random.default_rng(choices.getrandbits(64))
                arrived = draw.random(count) < choices.random()
        place[arrived] = data[arrived]
        if self._with_garbage and choices.random() < 0.5:
            # The sector that was being written when the power went.
            sector = choices.randrange(count)
            place[sector] = choices.choice([0, 0xA5, choices.randrange(256)])
