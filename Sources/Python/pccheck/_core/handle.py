"""One checkpoint on its way: its handle, and how it ended."""

from __future__ import annotations

import ctypes as c
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

from ..errors import (
    AcceleratorError,
    CheckpointError,
    Forked,
    InvalidArgument,
    NoCheckpoint,
    StateChanged,
    Timeout,
)
from . import native, open_files
from .arguments import seconds
from .debug import Watch
from .saver import Saver
from .tensors import DevicePlace

log = logging.getLogger("pccheck")

# A call into the library is no longer than this, so that a signal such as Ctrl-C is handled.
SLICE_MILLISECONDS = 100
_LISTED_NAME_COUNT = 5
# Between two looks whether the thread of a save has left what it is in.
_DECISION_PAUSE_SECONDS = 0.001
_LONGEST_DECISION_PAUSE_SECONDS = 0.02
# Those that hold a handle from its begin until save() returns.
_SAVING_FUNCTIONS = {"save", "_save_state"}


#: The current stream of the device of a place; None while it records a graph, as nothing runs then.
StreamOf = Callable[[DevicePlace], "int | None"]


class Guard(Protocol):
    """What notices that memory which is read in place was changed."""

    def changed(self) -> list[str]:
        """The names of the tensors that were changed since the save."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a checkpoint ended."""

    #: ``durable``, ``superseded`` or ``skipped``.
    kind: str
    step: int
    sequence: int
    #: Sequence of the newer durable checkpoint that made this one superfluous.
    superseded_by: int | None
    #: Seconds from ``save`` until the state was copied, and until it was durable.
    staged_seconds: float | None
    durable_seconds: float | None

    @property
    def durable(self) -> bool:
        """True when this very checkpoint is durable."""
        return self.kind == "durable"


class SaveHandle:
    """One checkpoint on its way. Dropping the handle does not stop the checkpoint."""

    def __init__(
        self,
        step: int,
        owners: list[object],
        watch: Watch | None = None,
        reads_guarded: bool = False,
        byte_count: int = 0,
        early_owners: list[object] | None = None,
        guard: Guard | None = None,
        writer: c.c_void_p | None = None,
        places: Collection[DevicePlace] = (),
        early_places: Collection[DevicePlace] = (),
    ) -> None:
        self._watch = watch
        # What keeps the memory alive that is copied first, as nothing notices its changes or holds
        # them back.
        self._early_owners = early_owners or []
        # The devices that it reads, and those on which nothing notices or holds back changes.
        self._places = places
        self._early_places = early_places
        # Until the writer knows whether the memory changed, it does not commit the checkpoint.
        self._guard = guard
        self._writer = writer
        self._saver = Saver()
        #: True while the writer waits for the decision whether to commit.
        self.needs_decision = guard is not None
        # The save() that still waits for memory to be copied. An interrupted one leaves this set:
        # it is unknown what its caller does to that memory.
        self._saving_thread: threading.Thread | None = None
        self._guard_lock = threading.RLock()
        self._changed: list[str] = []
        self._reads_guarded = reads_guarded
        self._library = native.library()
        # Filled by the call that begins the checkpoint, and freed with this object: no interrupt
        # can fall between a ticket and its owner. NULL before.
        self._ticket = c.c_void_p()
        self._process = os.getpid()
        self._owners = owners
        self._is_noticed = False
        self._is_told = False
        self._byte_count = byte_count
        #: The step that was saved.
        self.step = step
        #: How long ``save`` kept its caller, in seconds.
        self.blocked_seconds = 0.0
        #: Bytes that ``save`` copied into memory of its own, beside the pool: small tensors, and
        #: what has to be converted or comes from a device.
        self.copied_byte_count = 0
        #: Bytes that the engine reads from devices itself, chunk by chunk.
        self.device_byte_count = 0

    @property
    def sequence(self) -> int:
        """The checkpoint's number in the file, strictly increasing; 0 when skipped."""
        self._check_process()
        return int(self._library.pcc_ticket_sequence(self._ticket))

    @property
    def has_begun(self) -> bool:
        """False before the writer knows of the checkpoint, and for one that it refused."""
        return bool(self._ticket)

    def __repr__(self) -> str:
        if os.getpid() != self._process:
            return f"<SaveHandle step={self.step} of the parent process {self._process}>"
        return f"<SaveHandle step={self.step} sequence={self.sequence} {self.state}>"

    def __reduce__(self) -> NoReturn:
        raise open_files.no_pickle(self, f"step {self.step}")

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        # In a child the ticket's locks may be held by threads that exist only in the parent.
        # When the interpreter ends, `os` may be empty already.
        if getattr(self, "_ticket", None) and getpid() == self._process:
            self._library.pcc_ticket_free(self._ticket)

    @property
    def state(self) -> str:
        """``staging``, ``staged``, ``durable``, ``superseded``, ``skipped`` or ``failed``."""
        self._check_process()
        state = native.TICKET_STATES[self._library.pcc_ticket_state(self._ticket)]
        if state != "staging":
            self._decide()
        return state

    def done(self) -> bool:
        """True when the checkpoint ended, well or not."""
        return self.state not in ("staging", "staged")

    def wait_staged(self, timeout: float | None = None) -> None:
        """Returns when the state has been copied, so that its memory may be changed.

        A failed checkpoint counts as staged: its memory is no longer read. Raises ``Timeout``
        after ``timeout`` seconds.
        """
        self._wait(self._library.pcc_ticket_wait_staged, timeout, "staged")
        self._release()

    @property
    def reads_early(self) -> bool:
        """True while it may read memory that nothing guards."""
        return bool(self._early_owners or self._early_places)

    @property
    def reads_memory(self) -> bool:
        """True while it may read memory that the caller could change; false for copies."""
        reads_guarded = self._reads_guarded and (self._owners or self._watch)
        return bool(reads_guarded or self._early_owners or self._places)

    def _wait_early(self) -> None:
        """Returns when the memory is copied that nothing guards, so that it may be changed."""
        if self._early_owners:
            self._wait(self._library.pcc_ticket_wait_early, None, "copied")
            self._early_owners = []
            if self._watch is not None:
                self._watch.check_early()
        for place in self._early_places:
            self._hold(place, only_early=True)
        self._early_places = ()

    def before_change(self, stream_of: StreamOf) -> None:
        """Returns when the caller may change the memory, on a device by work that it queues on the
        current stream."""
        if not self._places:
            return self.wait_staged()
        # The streams of the save as well: from here on nobody looks for changes that they make.
        held = set(self._places)
        for place in self._places:
            stream = stream_of(place)
            if stream is None:
                return
            held.add(replace(place, stream=stream))
        try:
            for place in held:
                self._hold(place)
        except InvalidArgument:
            # The stream of the save records a graph. Changes are still looked for.
            return
        # From here on changes are expected, and come too late to matter.
        self._decide()

    def _hold(self, place: DevicePlace, only_early: bool = False) -> None:
        """Has a stream wait until the memory of its device, or the early part, is copied, and the
        caller until the rest is."""
        given = native.Place(place.kind, place.ordinal, place.stream)

        def hold(ticket: c.c_void_p, milliseconds: int, error: Any) -> int:
            return int(
                self._library.pcc_ticket_hold_stream(
                    ticket, c.byref(given), int(only_early), milliseconds, error
                )
            )

        try:
            self._wait(hold, None, "copied")
        except AcceleratorError as failure:
            # No stream waits for it, so the caller does.
            log.warning("step %d: %s; waiting until it is staged", self.step, failure)
            self._wait(self._library.pcc_ticket_wait_staged, None, "staged")

    def begin_waiting(self) -> None:
        """Has the writer wait for the word of save(), which waits for memory to be copied."""
        self._saving_thread = threading.current_thread()
        self.needs_decision = True

    def wait_as_asked(self, overlap: bool | None) -> None:
        """The wait of save(): for all of the memory, or for what nothing guards, or for none."""
        try:
            if overlap is False:
                self.wait_staged()
            elif overlap is None:
                self._wait_early()
        except BaseException:
            self.discard()
            raise
        self.end_waiting()

    def end_waiting(self) -> None:
        """The memory that save() waited for was copied."""
        self._saving_thread = None
        if self.needs_decision and self.state != "staging":
            self._decide()

    def settle_interrupted(self, waits: bool = False) -> None:
        """Discards the checkpoint if its save() was interrupted; not one that a thread is in.

        With ``waits``, a save() further up this thread's stack, below a signal handler that closes
        the file, has its memory copied here: nobody changes it before the handler returns.
        """
        thread = self._saving_thread
        if thread is None or (thread is not threading.current_thread() and thread.is_alive()):
            return
        if not self._is_in_save():
            self.discard()
        elif waits:
            self._wait(self._library.pcc_ticket_wait_staged, None, "staged")
            self.end_waiting()

    def discard(self) -> None:
        """Ends the checkpoint, whose save() did not see its memory copied."""
        if os.getpid() != self._process:
            return
        with self._guard_lock:
            if self.needs_decision:
                self._reject(
                    f"step {self.step}: save() was interrupted before the state was copied, so "
                    "that it may have changed; the checkpoint was discarded: save again"
                )
            self._saving_thread = None

    def _is_in_save(self) -> bool:
        """Whether a save() of this thread still has it in hand, as the stack tells."""
        frame = sys._getframe(1)
        while frame is not None:
            is_save = frame.f_code.co_name in _SAVING_FUNCTIONS
            if is_save and any(value is self for value in frame.f_locals.values()):
                return True
            if frame.f_back is None:
                break
            frame = frame.f_back
        return False

    def _reject(self, reason: str) -> None:
        error = native.Error()
        self._library.pcc_writer_reject(
            self._writer, self._ticket, reason.encode("utf-8", "replace"), c.byref(error)
        )
        # Last: after an interrupt the decision is still to be made.
        self.needs_decision = False

    def _decide(self) -> None:
        """Once it is staged, and before anybody may change the memory: tells the writer whether
        it changed meanwhile."""
        if os.getpid() != self._process:
            return
        with self._guard_lock:
            if not self.needs_decision or self._saving_thread is not None:
                return
            if self._guard is not None and not self._saver.is_past():
                # What it is in may have changed memory already, and is not counted yet.
                return
            self._changed = [] if self._guard is None else self._guard.changed()
            if self._changed:
                self._reject(self._change_text())
            else:
                error = native.Error()
                self._library.pcc_writer_approve(self._writer, self._ticket, c.byref(error))
                self.needs_decision = False
            self._guard = None
            # It holds a frame, and all that is in it.
            del self._saver

    def _decide_when_staged(self) -> None:
        if not self.needs_decision:
            return
        self._wait(self._library.pcc_ticket_wait_staged, None, "staged")
        pause = _DECISION_PAUSE_SECONDS
        while True:
            self._decide()
            if not self.needs_decision or self._saving_thread is not None:
                return
            # The thread of the save is in the middle of something.
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_DECISION_PAUSE_SECONDS)

    def _forget_guard(self) -> None:
        """The writer is about to be freed."""
        if os.getpid() != self._process:
            return
        with self._guard_lock:
            self.needs_decision = False
            self._guard = None

    def _change_text(self) -> str:
        names = ", ".join(f"'{name}'" for name in self._changed[:_LISTED_NAME_COUNT])
        more = len(self._changed) - _LISTED_NAME_COUNT
        return (
            f"step {self.step}: {names}{f' and {more} more' if more > 0 else ''} changed between "
            "save() and staged, by something that is no step of a torch optimizer, such as "
            "load_state_dict, nn.init, an in-place operation, or a swap to averaged weights; the "
            "checkpoint was discarded, and what was durable stays: call wait_staged() before such "
            "a change, or give save(overlap=False)"
        )

    def wait(self, timeout: float | None = None) -> Outcome:
        """Returns when the checkpoint is durable, was superseded by a newer one, or skipped.

        Raises why it failed, or ``Timeout`` after ``timeout`` seconds.
        """
        # In a child, a thread that exists only in the parent may hold the lock of the decision.
        self._check_process()
        began = time.monotonic()
        try:
            if self.needs_decision:
                self._wait(self._library.pcc_ticket_wait_staged, timeout, "durable")
                self._decide()
                if timeout is not None:
                    timeout = max(0.0, timeout - (time.monotonic() - began))
            status = self._wait(self._library.pcc_ticket_wait, timeout, "durable")
        except Timeout:
            raise
        except CheckpointError:
            self._is_noticed = True
            self._watch = None
            self._release()
            if self._changed:
                raise StateChanged(
                    self._change_text(), step=self.step, names=self._changed
                ) from None
            raise
        self._release()
        self._tell()
        kinds = {native.SUPERSEDED: "superseded", native.SKIPPED: "skipped"}
        return Outcome(
            kinds.get(status, "durable"),
            self.step,
            self.sequence,
            self._library.pcc_ticket_superseded_by(self._ticket) or None,
            _seconds(self._library.pcc_ticket_staged_nanoseconds(self._ticket)),
            _seconds(self._library.pcc_ticket_durable_nanoseconds(self._ticket)),
        )

    def exception(self) -> CheckpointError | None:
        """Why the checkpoint failed; None while it is under way and when it did not fail."""
        if self.state != "failed":
            return None
        try:
            self.wait(timeout=10)
        except CheckpointError as error:
            return error
        return None

    @property
    def is_to_be_copied(self) -> bool:
        """Whether a copy of it may begin, which holds its slot from then on."""
        return self.done()

    def wait_to_be_copied(self) -> int:
        """The sequence of the checkpoint, once it is durable; raises why it is not.

        Not ``wait``, which is for the caller of the save: there it raises what went wrong.
        """
        status = self._wait(self._library.pcc_ticket_wait, None, "durable")
        if status == native.SUPERSEDED:
            raise NoCheckpoint(
                f"step {self.step} never became durable: a newer checkpoint did before it", code=7
            )
        if status == native.SKIPPED:
            raise NoCheckpoint(
                f"step {self.step} was skipped, as every slot was in flight", code=7
            )
        return self.sequence

    def _tell(self) -> None:
        """One line in the log about a checkpoint that ended well."""
        if self._is_told or self.state != "durable":
            return
        self._is_told = True
        staged = self._library.pcc_ticket_staged_nanoseconds(self._ticket)
        durable = self._library.pcc_ticket_durable_nanoseconds(self._ticket)
        # The first leg of what comes from a device ends when all of it is staged.
        leg = ""
        if self.device_byte_count:
            rate = self.device_byte_count / max(staged, 1)
            leg = f" ({self.device_byte_count / 1e6:.1f} MB from devices, {rate:.2f} GB/s)"
        log.info(
            "step %d: %.1f MB staged in %.1f ms%s, durable in %.1f ms, %.2f GB/s",
            self.step, self._byte_count / 1e6, staged / 1e6, leg, durable / 1e6,
            self._byte_count / max(durable, 1),
        )  # fmt: skip

    def _release(self) -> None:
        """Lets go of the memory, which was copied; in debug mode, of what did not change."""
        self._decide()
        if self.needs_decision and self._is_staged():
            # The thread of the save is in the middle of something. Until it is known whether that
            # changed the memory, what changes it next has to ask here first.
            return
        watch, self._watch = self._watch, None
        try:
            if watch is not None:
                watch.check()
        finally:
            self._owners.clear()
            self._early_owners = []
            self._places = self._early_places = ()

    def _is_staged(self) -> bool:
        return native.TICKET_STATES[self._library.pcc_ticket_state(self._ticket)] == "staged"

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise Forked(
                f"this handle belongs to the parent process {self._process}, which saves on; wait "
                "for it there",
                code=20,
            )

    def _wait(
        self, call: Callable[[c.c_void_p, int, Any], int], timeout: float | None, goal: str
    ) -> int:
        """Calls in slices; returns OK, SUPERSEDED or SKIPPED."""
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
        error = native.Error()
        while True:
            left = SLICE_MILLISECONDS
            if deadline is not None:
                left = round(1000 * min(left / 1000, max(0.0, deadline - time.monotonic())))
            status = call(self._ticket, left, c.byref(error))
            if status in (native.OK, native.SUPERSEDED, native.SKIPPED):
                return status
            if status != native.TIMEOUT:
                raise native.exception_from(status, error)
            if call is self._library.pcc_ticket_wait:
                # Staged already, and perhaps not decided on: its save may have been interrupted
                # before the thread that decides heard of it.
                self._decide()
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(
                    f"the checkpoint of step {self.step} is not {goal} after {timeout} s; it goes "
                    "on in the background",
                    code=native.TIMEOUT,
                )

    def _report_unnoticed_failure(self) -> None:
        """Logs a failure that nobody asked about, once."""
        if self._is_noticed or self.state != "failed":
            return
        error = self.exception()
        self._is_noticed = True
        log.error("the checkpoint of step %d failed: %s", self.step, error)


class Approvals:
    """A thread that decides on checkpoints as soon as they are staged; no caller needs to wait."""

    def __init__(self) -> None:
        self._handles: queue.SimpleQueue[SaveHandle | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, handle: SaveHandle) -> None:
        if self._thread is None:
            # A daemon: at exit the waits of the main thread decide.
            self._thread = threading.Thread(target=self._run, name="pccheck-approve", daemon=True)
            self._thread.start()
        self._handles.put(handle)

    def stop(self) -> None:
        self._handles.put(None)

    def _run(self) -> None:
        while True:
            handle = self._handles.get()
            if handle is None:
                return
            try:
                handle._decide_when_staged()
            except CheckpointError:
                # It failed alone; its own waits say why.
                log.debug("the checkpoint of step %d ended before it was staged", handle.step)
            except Exception:
                # Those behind it still need a word; the caller that waits for this one asks again.
                log.exception("the checkpoint of step %d was not decided on", handle.step)
            del handle


def _seconds(nanoseconds: int) -> float | None:
    return nanoseconds / 1e9 if nanoseconds else None
