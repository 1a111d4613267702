"""The native writer with what Python must add: memory kept alive, waits that heed signals."""

from __future__ import annotations

import ctypes as c
import json
import logging
import math
import operator
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CheckpointError, Closed, Forked
from . import native
from .debug import Watch
from .handle import SLICE_MILLISECONDS, Approvals, Guard, SaveHandle, StreamOf
from .past import Past
from .saver import changes_nothing
from .tensors import DevicePlace, TensorEntry

log = logging.getLogger("pccheck")

# A save that waits so long for readers' pins says which processes they are.
_PIN_WARNING_SECONDS = 2.0

#: Registers memory, given its address and size in bytes; returns what undoes that.
Pin = Callable[[int, int], Callable[[], object]]

# pcc_tensor as a row of a NumPy array, which is filled a column at a time.
_TENSOR_ROW = np.dtype(
    [
        ("name", "<u8"), ("dtype", "<u8"), ("shape", "<u8"), ("data", "<u8"),
        ("byte_count", "<u8"), ("rank", "<u4"), ("is_early", "<u4"),
        ("device", "<u4"), ("ordinal", "<i4"), ("stream", "<u8"),
    ]
)  # fmt: skip
assert c.sizeof(native.Tensor) == _TENSOR_ROW.itemsize


@dataclass(frozen=True)
class Recovered:
    """The checkpoint that a writer continued from when it was opened."""

    sequence: int
    step: int
    #: Whether opening read all of it. Where not, a load finds out what it is worth.
    is_verified: bool


def _pin_text(pin: dict[str, Any]) -> str:
    """One row of ``pinned_slots`` for people."""
    if pin["pid"] is None:
        holder = "a process that this user cannot see"
    elif pin["pid"] == os.getpid():
        holder = f"this process ({pin['pid']}), which has a load open"
    else:
        holder = f"process {pin['pid']} ({pin['command']})"
    return f"slot {pin['slot']} is pinned by {holder}"


#: What of an entry is the same in every row that is used again.
_kept_in_rows = operator.attrgetter(
    "name", "stored_dtype", "shape", "byte_count", "is_copy", "is_guarded"
)


def _is_early(entry: TensorEntry) -> bool:
    """True for memory that may change, unnoticed, as soon as save() has returned."""
    return entry.byte_count > 0 and not (entry.is_copy or entry.is_guarded)


def _handle_of(
    kind: type[SaveHandle], step: int, entries: Sequence[TensorEntry], watch: Watch | None,
    guard: Guard | None, writer: c.c_void_p,
) -> SaveHandle:  # fmt: skip
    """The handle of a save that has not begun; it keeps the memory alive."""
    # Kind by kind: a state may have 100,000 entries, nearly all of one kind.
    copies = [entry for entry in entries if entry.is_copy]
    read = [entry for entry in entries if not entry.is_copy]
    guarded = [entry for entry in read if entry.is_guarded]
    unguarded = [entry for entry in read if not entry.is_guarded]
    on_devices = [entry for entry in read if entry.place is not None]
    early_places = {entry.place for entry in unguarded if entry.place is not None}
    early_owners = [
        entry.owner for entry in unguarded if entry.place is None and entry.byte_count
    ]
    owners = [entry.owner for entry in (*copies, *guarded, *on_devices)]
    places = {entry.place for entry in on_devices if entry.place is not None}
    handle = kind(
        step, owners, watch, bool(guarded), _byte_count(entries), early_owners, guard, writer,
        places, early_places,
    )  # fmt: skip
    handle.copied_byte_count = _byte_count(copies)
    handle.device_byte_count = _byte_count(on_devices)
    return handle


def _byte_count(entries: Sequence[TensorEntry]) -> int:
    return sum([entry.byte_count for entry in entries])


class TensorTable:
    """The pcc_tensor rows of a state, reused while its structure stays the same."""

    def __init__(self) -> None:
        self._signature: list[object] | None = None
        self._rows = np.empty(0, _TENSOR_ROW)
        self._keep: list[object] = []
        self._has_places = False

    def fill(self, entries: Sequence[TensorEntry]) -> tuple[int | None, int]:
        """Address and count of the rows; they stay valid until the next call."""
        signature: list[object] = list(map(_kept_in_rows, entries))
        if signature != self._signature:
            # An interrupt here leaves rows that are half made, and that nothing uses.
            self._signature = None
            self._build(entries)
            self._signature = signature
        addresses = np.array([entry.address for entry in entries], dtype="<u8")
        self._rows["data"] = np.where(self._rows["byte_count"] > 0, addresses, 0)
        self._fill_places([entry.place for entry in entries])
        return (self._rows.ctypes.data if len(entries) else None), len(entries)

    def _fill_places(self, places: list[DevicePlace | None]) -> None:
        has_places = any(places)
        if not (has_places or self._has_places):
            return
        # Set first: an interrupt may leave some of them.
        self._has_places = True
        host = DevicePlace(0, 0)
        self._rows["device"] = [(place or host).kind for place in places]
        self._rows["ordinal"] = [(place or host).ordinal for place in places]
        self._rows["stream"] = [(place or host).stream for place in places]
        self._has_places = has_places

    def _build(self, entries: Sequence[TensorEntry]) -> None:
        self._rows = np.zeros(len(entries), _TENSOR_ROW)
        self._keep = []
        rows = self._rows
        rows["name"] = [self._text(entry.name) for entry in entries]
        dtypes = {name: self._text(name) for name in {entry.stored_dtype for entry in entries}}
        rows["dtype"] = [dtypes[entry.stored_dtype] for entry in entries]
        rows["byte_count"] = [entry.byte_count for entry in entries]
        rows["rank"] = [len(entry.shape) for entry in entries]
        rows["is_early"] = [_is_early(entry) for entry in entries]
        extents = np.array([n for entry in entries for n in entry.shape], dtype="<u8")
        self._keep.append(extents)
        ends = np.cumsum([len(entry.shape) for entry in entries], dtype="<u8")
        rows["shape"] = extents.ctypes.data + 8 * (ends - rows["rank"])

    def _text(self, text: str) -> int:
        buffer = c.create_string_buffer(text.encode("utf-8"))
        self._keep.append(buffer)
        return c.addressof(buffer)


def metadata_array(metadata: dict[str, str]) -> c.Array[native.Metadata]:
    """The metadata as the library takes it."""
    rows = (native.Metadata * len(metadata))()
    for row, (key, value) in zip(rows, metadata.items(), strict=True):
        row.key = key.encode("utf-8")
        row.value = value.encode("utf-8")
    return rows


class PendingSave:
    """A save that the library knows, and that has no slot yet."""

    def __init__(self, library: c.CDLL) -> None:
        self._library = library
        self._process = os.getpid()
        self.save = c.c_void_p()

    def __del__(self) -> None:
        # Interrupted before it was disposed of.
        if getattr(self, "save", None):
            self.dispose()

    def dispose(self) -> None:
        """Gives up its claim on a slot, and frees it."""
        if self.save and os.getpid() == self._process:
            # It sets the pointer to NULL itself: an interrupt leaves it freed or not, never lost.
            self._library.pcc_save_dispose(c.byref(self.save))

    def wait(self, is_urgent: bool, until: float | None) -> None:
        """Returns when there may be a slot, or a slice of time is over, so that signals are heard.

        Raises ``Timeout``, with what is in the way, when the deadline of one that is not urgent has
        passed.
        """
        limit = math.inf if is_urgent or until is None else until
        left = min(1000 * (limit - time.monotonic()), SLICE_MILLISECONDS)
        error = native.Error()
        status = self._library.pcc_save_wait(
            self.save, int(is_urgent), max(0, math.ceil(left)), c.byref(error)
        )
        if status != native.TIMEOUT or time.monotonic() >= limit:
            native.check(status, error)


class Engine:
    """An open native writer, and the checkpoints whose memory it still reads.

    It outlives its Checkpointer: the finalizer that waits for what is in flight holds it.
    """

    #: What a save returns; in the file of a group its handles know more.
    handle_type: type[SaveHandle] = SaveHandle

    def __init__(
        self,
        path: bytes,
        options: native.WriterOptions,
        pin: Pin | None = None,
        past: Past | None = None,
    ) -> None:
        """``past`` is of the engine whose work this one continues with, in the same file."""
        self._library = native.library()
        self._path = path
        self._process = os.getpid()
        self._writer: c.c_void_p | None = c.c_void_p()
        self._table = TensorTable()
        self._is_skip_told = False
        self._outstanding: list[SaveHandle] = []
        self._approvals = Approvals()
        self._past = past or Past()
        #: What callers of `wait_staged`, such as optimizers, waited.
        self.staged_wait_nanoseconds = self._past.staged_wait_nanoseconds
        # Saves may not go below it.
        self._last_step: int | None = None
        self.lock = threading.RLock()
        self._unpin: Callable[[], object] | None = None
        error = native.Error()
        # A resume reads the newest checkpoint, and verifies it as it does: once is enough.
        options.trust_anchor = 1
        try:
            status = self._library.pcc_writer_open(
                path, c.byref(options), c.byref(self._writer), c.byref(error)
            )
            native.check(status, error)
            # The file of a group goes back with an attempt only.
            if self._past.last_step is not None and not options.accepts_group:
                self.rewind(self._past.last_step)
            if pin is not None:
                self._unpin = pin(*self.pool())
        except BaseException:
            # Not opened after all, or interrupted: the file must not stay locked.
            self.close()
            raise
        _engines.add(self)
        reason = self.stats()["backend_fallback_reason"]
        if reason is not None:
            log.warning("%s: took a slower back end: %s", os.fsdecode(path), reason)

    def __del__(self) -> None:
        # Interrupted before anybody knew of it. Everybody else closes it first.
        if getattr(self, "_writer", None):
            self.close()

    def recovered(self) -> Recovered | None:
        """The checkpoint that opening chose to continue from; None in a file without any."""
        info, is_verified, error = native.CheckpointInfo(), c.c_uint32(), native.Error()
        self._check_process()
        with self.lock:
            status = self._library.pcc_writer_recovered(
                self._open_writer(), c.byref(info), c.byref(is_verified), c.byref(error)
            )
        if status == native.NO_CHECKPOINT:
            return None
        native.check(status, error)
        return Recovered(int(info.sequence), int(info.step), bool(is_verified.value))

    def pool(self) -> tuple[int, int]:
        """Address and size of the staging pool, which stays where it is until close."""
        start, byte_count, error = c.c_void_p(), c.c_uint64(), native.Error()
        status = self._library.pcc_writer_pool(
            self._open_writer(), c.byref(start), c.byref(byte_count), c.byref(error)
        )
        native.check(status, error)
        return start.value or 0, byte_count.value

    def save(
        self,
        step: int,
        entries: Sequence[TensorEntry],
        metadata: dict[str, str],
        user_metadata: bytes | None,
        wait_until: float | None,
        urgent: bool | Callable[[], bool] = False,
        watch: Watch | None = None,
        guard: Guard | None = None,
        overlap: bool | None = None,
    ) -> SaveHandle:
        """Begins a checkpoint; while every slot is in flight, waits until the deadline.

        An urgent one waits for a slot whatever the policy, and goes before the others. A save may
        become urgent while it waits: ``urgent`` is asked again after every slice of the wait.

        Where memory must be copied before the caller's ``save`` returns, by ``overlap`` or because
        nothing guards it, that ``save`` calls ``end_waiting`` on the handle: until then nothing
        is committed.
        """
        refuse_reentry(self, os.fsdecode(self._path))
        handle = self._handle(step, entries, watch, guard, overlap)
        pending = PendingSave(self._library)
        try:
            self._prepare(pending, handle, entries, metadata, user_metadata)
            self._begin_or_wait(pending, handle, wait_until, urgent)
        finally:
            pending.dispose()
        if handle.needs_decision:
            self._approvals.add(handle)
        self._tell_of_skip(handle)
        return handle

    def _handle(
        self,
        step: int,
        entries: Sequence[TensorEntry],
        watch: Watch | None,
        guard: Guard | None,
        overlap: bool | None,
    ) -> SaveHandle:
        self._check_process()
        with self.lock:
            handle = _handle_of(self.handle_type, step, entries, watch, guard, self._open_writer())
        if overlap is False or (overlap is None and handle.reads_early):
            handle.begin_waiting()
        return handle

    def _prepare(
        self,
        pending: PendingSave,
        handle: SaveHandle,
        entries: Sequence[TensorEntry],
        metadata: dict[str, str],
        user_metadata: bytes | None,
    ) -> None:
        """Describes the payload to the library, which takes the table's rows as they are now."""
        rows = metadata_array(metadata)
        options = native.SaveOptions(
            c.sizeof(native.SaveOptions), 0, user_metadata, handle.needs_decision
        )
        error = native.Error()
        self._check_process()
        with self.lock:
            writer = self._open_writer()
            address, count = self._table.fill(entries)
            status = self._library.pcc_writer_prepare(
                writer, handle.step, address, count, rows, len(rows), c.byref(options),
                c.byref(pending.save), c.byref(error),
            )  # fmt: skip
            native.check(status, error)

    def _begin_or_wait(
        self,
        pending: PendingSave,
        handle: SaveHandle,
        until: float | None,
        urgent: bool | Callable[[], bool],
    ) -> None:
        """Begins a prepared checkpoint; the library waits, and here signals are heard."""
        began, is_told, broken_count = time.monotonic(), False, None
        while True:
            is_urgent = urgent() if callable(urgent) else urgent
            if is_urgent and broken_count is None:
                broken_count = self.stats()["broken_pin_count"]
            busy = self._begin(pending, handle, is_urgent)
            if busy is None:
                break
            if not is_urgent and until is None:
                raise busy
            pending.wait(is_urgent, until)
            if not is_told and time.monotonic() - began > _PIN_WARNING_SECONDS:
                is_told = self._warn_of_pins(handle.step)
        if broken_count is not None and self.stats()["broken_pin_count"] > broken_count:
            log.warning(
                "%s: the urgent save of step %d took a slot from its readers",
                os.fsdecode(self._path), handle.step,
            )  # fmt: skip

    def _begin(
        self, pending: PendingSave, handle: SaveHandle, is_urgent: bool
    ) -> CheckpointError | None:
        """Begins a prepared checkpoint, or returns that there is no slot for it yet."""
        self._check_process()
        with self.lock:
            self._open_writer()
            self.reap()
            error = native.Error()
            # Known before it begins: the writer reads the memory, so somebody must keep it,
            # whatever interrupts this.
            self._outstanding.append(handle)
            try:
                status = self._library.pcc_save_begin(
                    pending.save, int(is_urgent), c.byref(handle._ticket), c.byref(error)
                )
                if status == native.BUSY:
                    return native.exception_from(status, error)
                native.check(status, error)
                if handle.state != "skipped":
                    self._last_step = handle.step
            finally:
                if not handle.has_begun and handle in self._outstanding:
                    self._outstanding.remove(handle)
            return None

    def _tell_of_skip(self, handle: SaveHandle) -> None:
        """Logs once when saves are skipped because readers have every slot."""
        if handle.state != "skipped":
            self._is_skip_told = False
        elif not self._is_skip_told:
            self._is_skip_told = self._warn_of_pins(handle.step, "was skipped because of")

    def _warn_of_pins(self, step: int, verb: str = "waits for") -> bool:
        """Logs which readers keep a save from a slot; False when there are none."""
        pins = self.stats()["pinned_slots"]
        if pins:
            log.warning(
                "%s: the save of step %d %s readers: %s; close them, or create the file "
                "with more slots in flight",
                os.fsdecode(self._path), step, verb, "; ".join(map(_pin_text, pins)),
            )  # fmt: skip
        return bool(pins)

    def reap(self) -> None:
        """Forgets checkpoints that have ended, and lets go of memory that was copied."""
        self._check_process()
        with self.lock:
            unfinished = []
            for handle in self._outstanding:
                if not handle.has_begun:
                    continue
                handle.settle_interrupted()
                state = handle.state
                if state != "staging":
                    handle._release()
                if state in ("staging", "staged"):
                    unfinished.append(handle)
                    continue
                handle._tell()
                handle._report_unnoticed_failure()
            self._outstanding = unfinished

    def in_flight(self, step: int) -> SaveHandle | None:
        """The last save of that step which has not ended."""
        for handle in reversed(self._outstanding):
            if handle.step == step and handle.has_begun and not handle.done():
                return handle
        return None

    def wait_staged(self) -> None:
        """Returns when no checkpoint reads the caller's memory any more."""
        if not self._writer or os.getpid() != self._process:
            return
        began = time.perf_counter_ns()
        for handle in list(self._outstanding):
            if handle.has_begun and handle.reads_memory:
                handle.wait_staged()
        self.staged_wait_nanoseconds += time.perf_counter_ns() - began

    def before_change(self, stream_of: StreamOf) -> None:
        """Returns when what the caller does next may change memory that is being saved: the
        current stream of a device waits for the copies from it, and the caller for the others."""
        if not self._writer or os.getpid() != self._process:
            return
        began = time.perf_counter_ns()
        for handle in list(self._outstanding):
            if handle.has_begun and handle.reads_memory:
                handle.before_change(stream_of)
        self.staged_wait_nanoseconds += time.perf_counter_ns() - began

    def wait_finished(self) -> None:
        """Returns when every checkpoint has ended; failures that no caller has seen are logged."""
        for handle in list(self._outstanding):
            if not handle.has_begun:
                continue
            is_known = handle._is_noticed
            try:
                handle.settle_interrupted(waits=True)
                handle.wait()
            except CheckpointError as error:
                if not is_known:
                    log.error("the checkpoint of step %d failed: %s", handle.step, error)
        self.reap()

    def rewind(self, step: int) -> None:
        """Allows later saves to use steps from `step` on."""
        self._check_process()
        with self.lock:
            error = native.Error()
            native.check(
                self._library.pcc_writer_rewind(self._open_writer(), step, c.byref(error)), error
            )
            self._last_step = step

    def stats(self) -> dict[str, Any]:
        """What the writer counted."""
        self._check_process()
        with self.lock:
            text, error = c.c_void_p(), native.Error()
            status = self._library.pcc_writer_stats_json(
                self._open_writer(), c.byref(text), c.byref(error)
            )
            native.check(status, error)
            stats: dict[str, Any] = json.loads(native.take_text(text))
            return self._past.joined(stats)

    def end(self) -> Past:
        """Waits until nothing is in flight and closes the file; returns what the engine that
        opens it next continues with."""
        with self.lock:
            self.wait_finished()
            stats = self.stats()
            self.close()
            return Past(self._last_step, self.staged_wait_nanoseconds, stats)

    def close(self) -> None:
        """Waits until nothing is in flight and closes the file; a second call does nothing."""
        if os.getpid() != self._process:
            # The parent's threads do not exist here, and the file is the parent's.
            self._writer = None
            return
        with self.lock:
            if not self._writer:
                self._writer = None
                return
            self.wait_finished()
            unpin, self._unpin = self._unpin, None
            if unpin is not None:
                try:
                    unpin()
                except Exception:
                    # The file is closed all the same: what was saved matters more.
                    log.exception("the staging pool could not be unpinned")
            self._approvals.stop()
            error = native.Error()
            # It sets the pointer to NULL itself: an interrupt leaves it open or closed, not lost.
            status = self._library.pcc_writer_dispose(c.byref(self._writer), c.byref(error))
            self._writer = None
            native.check(status, error)

    def abandon(self) -> None:
        """Closes the file without waiting for what is in flight, as a crash would."""
        if os.getpid() != self._process:
            self._writer = None
            return
        with self.lock:
            writer, self._writer = self._writer, None
            if writer:
                self._approvals.stop()
                for handle in self._outstanding:
                    handle._forget_guard()
                self._library.pcc_writer_abandon(writer)

    def check_open(self) -> None:
        """Raises ``Forked`` in a child, ``Closed`` after close."""
        self._open_writer()

    @property
    def is_open(self) -> bool:
        """True while this process may save with it."""
        return bool(self._writer) and os.getpid() == self._process

    def _check_process(self) -> None:
        """To be called before the lock is taken: in a child it may never be released, by a thread
        that exists only in the parent."""
        if os.getpid() != self._process:
            raise Forked(
                f"{os.fsdecode(self._path)}: this checkpointer belongs to the parent process "
                f"{self._process}, which saves on; open a file after the fork, in the process that "
                "uses it",
                code=20,
            )

    def _open_writer(self) -> c.c_void_p:
        self._check_process()
        if not self._writer:
            raise Closed("the checkpointer was closed; open the file again", code=15)
        return self._writer


def refuse_reentry(owner: object, path: str) -> None:
    """Raises when the function that calls this is at work on the same owner further up the stack.

    A signal handler, a hook or a finalizer can run in the middle of a save. One that saved there
    would take the tables of that save from under it. The stack is asked, as an interrupt can leave
    a lock or a mark behind.
    """
    own = sys._getframe(1)
    frame = own.f_back
    while frame is not None:
        if frame.f_code is own.f_code and frame.f_locals.get("self") is owner:
            raise CheckpointError(
                f"{path}: save() was called in the middle of another save() of the same "
                "checkpointer, by a signal handler, a hook or a finalizer; have it set a flag, and "
                "save at the end of the step (on_sigterm='save' does that for SIGTERM)"
            )
        frame = frame.f_back


changes_nothing(__file__)
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def wait_staged_everywhere() -> None:
    """Returns when no checkpointer of this process reads its caller's memory any more."""
    for engine in list(_engines):
        engine.wait_staged()


def before_change_everywhere(stream_of: StreamOf) -> None:
    """``before_change`` for every checkpointer of this process."""
    for engine in list(_engines):
        engine.before_change(stream_of)


def wait_finished_everywhere() -> None:
    """Returns when no checkpointer of this process has anything in flight."""
    for engine in list(_engines):
        if engine.is_open:
            engine.wait_finished()
