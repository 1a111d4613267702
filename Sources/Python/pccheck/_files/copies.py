"""Verified copies of single checkpoints, made in the background while training continues."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from .._core.handle import SaveHandle
from .._core.reader import Reader
from ..errors import CheckpointError, Closed, DeviceError, Forked, Timeout

log = logging.getLogger("pccheck")

# A save waits so long for the pin of a checkpoint that became durable just before it.
_PIN_SECONDS = 1.0
# What a cancelled copy needs to end: it is asked after each chunk.
_CANCEL_SECONDS = 10.0
_WORKER_COUNT = 2


class KeepHandle:
    """A copy of one checkpoint on its way. Dropping the handle does not stop it."""

    def __init__(self, step: int, path: str, save: SaveHandle | None) -> None:
        #: The step that is copied, and the file that holds it in the end.
        self.step, self.path = step, path
        self._save = save
        self._pinned = threading.Event()
        self._ended = threading.Event()
        self._error: CheckpointError | None = None
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._is_cancelled = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = "under way" if not self.done() else "failed" if self._error else "durable"
        return f"<KeepHandle step={self.step} {self.path!r} {state}>"

    def done(self) -> bool:
        """True when the copy has ended, well or not."""
        return self._ended.is_set()

    @property
    def error(self) -> CheckpointError | None:
        """Why there is no copy; None while it is under way and when it went well."""
        return self._error if self.done() else None

    def wait(self, timeout: float | None = None) -> str:
        """Returns the path when the copy is durable under its name.

        Raises why there is none, or ``Timeout`` after ``timeout`` seconds.
        """
        if os.getpid() != self._process:
            raise Forked("this copy is made by the parent process", code=20)
        if not self._ended.wait(timeout):
            raise Timeout(
                f"{self.path}: the copy of step {self.step} is not complete after {timeout} s; "
                "it continues in the background"
            )
        if self._error is not None:
            raise self._error
        return self.path

    def cancel(self) -> None:
        """Ends the copy soon; nothing is left of it."""
        with self._lock:
            self._is_cancelled = True
            if self._reader is not None:
                self._reader.cancel()

    def _take(self, reader: Reader | None) -> None:
        with self._lock:
            self._reader = reader
            if reader is not None and self._is_cancelled:
                reader.cancel()

    @property
    def _waits_for_pin(self) -> bool:
        """Whether a save that begins now might get the slot of what is to be copied."""
        is_durable = self._save is None or self._save.is_to_be_copied
        return is_durable and not self._pinned.is_set()


class Copies:
    """The copies that one checkpointer makes of checkpoints in its file."""

    def __init__(self, source: str, fingerprint: bytes | None, allow_network: bool) -> None:
        self._source, self._fingerprint = source, fingerprint
        self._allow_network = allow_network
        self._process = os.getpid()
        self._active: list[KeepHandle] = []

    @property
    def active(self) -> list[KeepHandle]:
        """Those that have not ended."""
        self._active = [handle for handle in self._active if not handle.done()]
        return self._active

    def begin(
        self,
        step: int,
        path: str,
        *,
        save: SaveHandle | None = None,
        replace: bool = False,
        before: Callable[[int], None] = lambda _: None,
        after: Callable[[], None] = lambda: None,
        ended: Callable[[KeepHandle], None] = lambda _: None,
    ) -> KeepHandle:
        """Copies the checkpoint of ``save`` once it is durable, or the newest one of ``step``.

        These are called on the thread of the copy: ``before`` with the checkpoint's sequence, once
        its slot is pinned; ``after`` once the copy is durable; ``ended`` in any case.
        """
        handle = KeepHandle(step, path, save)

        def work() -> None:
            try:
                self._copy(handle, replace, before, after)
            except CheckpointError as error:
                handle._error = error
            except Exception as error:
                handle._error = DeviceError(f"{path}: {type(error).__name__}: {error}")
            finally:
                handle._pinned.set()
                if handle._error is not None:
                    log.error("step %d was not kept: %s", step, _about(path, handle._error))
                ended(handle)
                handle._save = None
                handle._ended.set()

        # A daemon: at exit `close` waits for it, with a bound.
        thread = threading.Thread(target=work, name=f"pccheck-keep-{step}", daemon=True)
        self._active.append(handle)
        thread.start()
        return handle

    def _copy(
        self,
        handle: KeepHandle,
        replace: bool,
        before: Callable[[int], None],
        after: Callable[[], None],
    ) -> None:
        sequence = _wait_durable(handle)
        began = time.monotonic()
        with Reader(self._source, self._fingerprint, worker_count=_WORKER_COUNT) as reader:
            handle._take(reader)
            try:
                if sequence:
                    info = reader.select(sequence)
                else:
                    info = reader.select_newest(handle.step)
                handle._pinned.set()
                before(info.sequence)
                reader.copy_to(
                    handle.path, is_payload=handle.path.endswith(".safetensors"),
                    replace=replace, allow_network=self._allow_network, is_background=True,
                )  # fmt: skip
            finally:
                handle._take(None)
        log.info(
            "step %d is kept in %s: %.1f MB copied and verified in %.1f s",
            handle.step, handle.path, info.payload_byte_count / 1e6, time.monotonic() - began,
        )  # fmt: skip
        after()

    def pin(self) -> None:
        """Returns when every checkpoint that is durable and to be copied has its slot pinned.

        A save that begins before that might get the slot.
        """
        for handle in self.active:
            if handle._waits_for_pin:
                handle._pinned.wait(_PIN_SECONDS)

    def close(self, timeout: float) -> None:
        """Waits for the copies under way, and cancels those that take longer."""
        if os.getpid() != self._process:
            # The threads are the parent's.
            return
        deadline = time.monotonic() + timeout
        for handle in self.active:
            handle._ended.wait(max(0.0, deadline - time.monotonic()))
        late = self.active
        for handle in late:
            log.error(
                "%s: the copy of step %d is given up, as it was not complete %.0f s after the "
                "checkpointer was closed", handle.path, handle.step, timeout,
            )  # fmt: skip
            handle.cancel()
        for handle in late:
            handle._ended.wait(_CANCEL_SECONDS)


def _about(path: str, error: CheckpointError) -> str:
    text = str(error)
    return text if text.startswith(path) else f"{path}: {text}"


def _wait_durable(handle: KeepHandle) -> int:
    """The sequence of what is to be copied; 0 when it is not a save that was in flight."""
    save = handle._save
    if save is None:
        return 0
    sequence = save.wait_to_be_copied()
    if handle._is_cancelled:
        raise Closed(f"{handle.path}: the copy was cancelled before it began")
    return sequence
