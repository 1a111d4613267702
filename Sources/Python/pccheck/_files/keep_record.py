"""The list of files that a `Keep` made: what may be replaced or removed, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes as c
import json
import logging
import os
import re
import threading
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .._core import native
from ..errors import DeviceError, StateFormatError

log = logging.getLogger("pccheck")

_NAME = "kept.json"
_SCHEMA_VERSION = 1
_LEFTOVER = re.compile(r"(step-\d{9,}\.(?:pcc|safetensors))\.creating-\d+")


@dataclass
class Entry:
    """One file in the folder."""

    name: str
    step: int
    #: What it was compared by; None when it had no number.
    value: float | None
    #: Why it is there: ``every``, ``best``, or both.
    reasons: list[str]
    sequence: int = 0
    #: What the file was like when it was complete. It is somebody else's once it differs.
    byte_count: int = -1
    modified_nanoseconds: int = -1


@dataclass
class _Lists:
    kept: dict[str, Entry] = field(default_factory=dict)
    #: On disk before the file gets its name, so that a crash leaves no file that nobody owns.
    pending: dict[str, Entry] = field(default_factory=dict)


class Record:
    """The files in a folder that a `Keep` owns, in memory and in ``kept.json``."""

    def __init__(self, folder: str, best: int | None, mode: str) -> None:
        self.folder = folder
        self._best, self._sign = best, -1.0 if mode == "max" else 1.0
        self._path = os.path.join(folder, _NAME)
        #: Chosen by this process; their copies are on their way.
        self._expected: dict[str, Entry] = {}
        # Copies end on threads of their own.
        self._lock = threading.RLock()
        try:
            os.makedirs(folder, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise DeviceError(
                f"{folder}: nothing can be kept there ({error.strerror}); give Keep(folder=…) a "
                "folder that this user may write to", errno=error.errno,
            ) from None  # fmt: skip
        self._lists = self._read()

    def _sweep(self) -> None:
        """Removes what killed copies left."""
        for found in filter(None, map(_LEFTOVER.fullmatch, os.listdir(self.folder))):
            error = native.Error()
            path = native.encode_path(os.path.join(self.folder, found[1]))
            native.check(native.library().pcc_sweep(path, c.byref(error)), error)

    def _read(self) -> _Lists:
        lists = _Lists()
        try:
            with open(self._path, encoding="utf-8") as file:
                document = json.load(file)
            kept = [Entry(**item) for item in document["kept"]]
            pending = [Entry(**item) for item in document["pending"]]
        except FileNotFoundError:
            return lists
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StateFormatError(
                f"{self._path}: the list of kept files cannot be read ({error}); put it back from "
                "a copy, or move it away: the files that it lists are then never removed"
            ) from None
        for entry in kept:
            found = self._stat(entry)
            if found is None:
                continue
            if found != (entry.byte_count, entry.modified_nanoseconds):
                log.warning(
                    "%s was changed since it was kept; it is left alone from now on",
                    os.path.join(self.folder, entry.name),
                )
                continue
            lists.kept[entry.name] = entry
        for entry in pending:
            # Its name is there and is not the file from before: the copy was complete.
            if entry.name not in lists.kept and (found := self._stat(entry)) is not None:
                entry.byte_count, entry.modified_nanoseconds = found
                lists.kept[entry.name] = entry
        return lists

    def _stat(self, entry: Entry) -> tuple[int, int] | None:
        try:
            found = os.lstat(os.path.join(self.folder, entry.name))
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def _write(self) -> None:
        document: dict[str, Any] = {"schema_version": _SCHEMA_VERSION}
        for key in ("kept", "pending"):
            entries = sorted(getattr(self._lists, key).values(), key=lambda entry: entry.step)
            document[key] = [asdict(entry) for entry in entries]
        temporary = self._path + ".new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _all(self) -> dict[str, Entry]:
        return {**self._lists.kept, **self._expected}

    def has_milestone(self, start: int, end: int) -> bool:
        """Whether a step from ``start`` to before ``end`` is kept for good."""
        with self._lock:
            return any(
                "every" in entry.reasons and start <= entry.step < end
                for entry in self._all().values()
            )

    def would_be_best(self, step: int, value: float) -> bool:
        """Whether so few others are as good that it is to be kept."""
        if self._best is None:
            return False
        with self._lock:
            others = [entry for entry in self._all().values() if entry.step != step]
        as_good = [
            entry for entry in others
            if "best" in entry.reasons and entry.value is not None
            and self._sign * entry.value <= self._sign * value
        ]  # fmt: skip
        return len(as_good) < self._best

    def owns(self, name: str) -> bool:
        """Whether the file of that name is one of the list, and as it was."""
        with self._lock:
            entry = self._lists.kept.get(name)
            return entry is not None and self._stat(entry) == (
                entry.byte_count, entry.modified_nanoseconds)  # fmt: skip

    def expect(self, entry: Entry) -> bool:
        """Notes that a copy is about to begin; False when a file of others has the name."""
        with self._lock:
            if self._stat(entry) is not None and not self.owns(entry.name):
                log.error(
                    "step %d is not kept: %s is there, and not in %s; move it away", entry.step,
                    os.path.join(self.folder, entry.name), _NAME,
                )  # fmt: skip
                return False
            self._expected[entry.name] = entry
            return True

    def begin(self, entry: Entry, sequence: int) -> None:
        """Before the copy gets its name."""
        with self._lock:
            entry.sequence = sequence
            self._lists.pending[entry.name] = entry
            self._write()

    def finish(self, entry: Entry) -> None:
        """Once the copy is durable under its name."""
        with self._lock:
            found = self._stat(entry)
            self._lists.pending.pop(entry.name, None)
            if found is not None:
                self._lists.kept[entry.name] = replace(
                    entry, byte_count=found[0], modified_nanoseconds=found[1]
                )
            self._evict()
            self._write()

    def _evict(self) -> None:
        """Removes what is not among the best any more. A crash before the list is written leaves
        names in it that are gone, which the next reading drops."""
        if self._best is None:
            return
        ranked = [entry for entry in self._lists.kept.values() if "best" in entry.reasons]
        ranked.sort(key=lambda entry: (self._sign * (entry.value or 0.0), entry.sequence))
        for entry in ranked[self._best :]:
            if "every" in entry.reasons:
                entry.reasons.remove("best")
                continue
            if self.owns(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.folder, entry.name))
                log.info("step %d is no longer among the best %d, and was removed from %s",
                         entry.step, self._best, self.folder)  # fmt: skip
            del self._lists.kept[entry.name]

    def forget(self, entry: Entry) -> None:
        """Once the copy has ended, well or not."""
        with self._lock:
            self._expected.pop(entry.name, None)
            if self._lists.pending.pop(entry.name, None) is not None:
                try:
                    self._write()
                except OSError as error:
                    log.error("%s cannot be written: %s", self._path, error)
