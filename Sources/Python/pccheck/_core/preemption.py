"""SIGTERM: one more state is saved and made durable before the process ends.

Schedulers send it some seconds before they kill. The handler only notes the signal. The save
happens at the next *safe point*, a call of ``save`` or ``maybe_save``, because only there model,
optimizer, loader and generators belong to the same step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import weakref
from typing import Any

from ..errors import CheckpointError, InvalidArgument
from .engine import wait_finished_everywhere
from .handle import SaveHandle
from .options import PreemptionOptions

log = logging.getLogger("pccheck")

_EXIT_STATUS = 128 + signal.SIGTERM


class _Watch:
    """The one handler of this process, for every checkpointer that asked for it."""

    def __init__(self) -> None:
        self.watchers: weakref.WeakSet[Preemption] = weakref.WeakSet()
        self._previous: Any = None
        self._is_installed = False
        self._process = 0
        self._mask: set[Any] | None = None

    def add(self, watcher: Preemption) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise InvalidArgument(
                "on_sigterm='save' installs a signal handler, which Python allows in the main "
                f"thread only, and this is {threading.current_thread().name}; open the file there,"
                " or call save(urgent=True) yourself when the signal comes"
            )
        self.watchers.add(watcher)
        if not self._is_installed or self._process != os.getpid():
            self._previous = signal.signal(signal.SIGTERM, self._received)
            self._is_installed = True
            self._process = os.getpid()

    def remove(self, watcher: Preemption) -> None:
        self.watchers.discard(watcher)
        if not self.watchers:
            self.restore()

    def restore(self) -> None:
        """Restores the earlier handler, unless another one was installed meanwhile."""
        if not self._is_installed or self._process != os.getpid():
            return
        if threading.current_thread() is not threading.main_thread():
            # Stays; it passes the signal on.
            return
        if signal.getsignal(signal.SIGTERM) == self._received:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        self._is_installed = False

    def before_fork(self) -> None:
        """Blocks the signal: between the fork and `forget` the child would note a signal that
        nobody handles."""
        if self._is_installed:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def after_fork(self) -> None:
        """In the parent, and in the child once it has its own handler."""
        mask, self._mask = self._mask, None
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def forget(self) -> None:
        """In a child: the signal is meant for it, and it saves nothing."""
        if self._is_installed and signal.getsignal(signal.SIGTERM) == self._received:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        self._is_installed = False
        self.watchers = weakref.WeakSet()
        self.after_fork()

    def pass_on(self) -> bool:
        """Calls the handler that was there before; False when there was none."""
        previous = self._previous
        if not callable(previous):
            return bool(previous == signal.SIG_IGN)
        previous(signal.SIGTERM, None)
        return True

    def _received(self, number: int, frame: Any) -> None:
        # Nothing is logged here: the signal may have come in the middle of writing a log.
        watchers = list(self.watchers)
        for watcher in watchers:
            watcher.notice()
        if not watchers and not self.pass_on():
            self._deliver()

    def _deliver(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


_watch = _Watch()
os.register_at_fork(
    before=_watch.before_fork, after_in_parent=_watch.after_fork, after_in_child=_watch.forget
)


class Preemption:
    """What one checkpointer does when the process is asked to end."""

    def __init__(self, path: str, options: PreemptionOptions) -> None:
        self._path = path
        self._process = os.getpid()
        self._after = options.after_sigterm
        self._grace = options.grace
        self._received_time: float | None = None
        self._is_handled = False
        _watch.add(self)

    @property
    def is_pending(self) -> bool:
        """True from the signal until a state was saved for it."""
        return self._received_time is not None and not self._is_handled

    @property
    def was_received(self) -> bool:
        """True once the signal came."""
        return self._received_time is not None

    def notice(self) -> None:
        """Called by the signal handler."""
        if self._received_time is None:
            self._received_time = time.monotonic()

    def finish(self, handle: SaveHandle) -> None:
        """Waits until the state is durable, logs how long that took, and ends as asked for."""
        assert self._received_time is not None
        self._is_handled = True
        try:
            # Without a bound: when the grace is over, the sender of the signal ends the process.
            outcome = handle.wait()
        except CheckpointError as error:
            log.error(
                "%s: SIGTERM: step %d could not be saved: %s", self._path, handle.step, error
            )
        else:
            taken = time.monotonic() - self._received_time
            left = self._grace - taken
            log.log(
                logging.WARNING if left >= 0 else logging.ERROR,
                "%s: SIGTERM: step %d is %s %.2f s after the signal, %s; staged in %.3f s",
                self._path, handle.step, outcome.kind, taken,
                f"{left:.1f} s before the grace of {self._grace:g} s ends"
                if left >= 0
                else f"{-left:.1f} s after the grace of {self._grace:g} s ended",
                outcome.staged_seconds or 0,
            )  # fmt: skip
        self._end()

    def _end(self) -> None:
        if self._after == "return":
            _watch.pass_on()
            return
        if any(watcher.is_pending for watcher in _watch.watchers):
            # Another checkpointer has its last state yet to save.
            return
        wait_finished_everywhere()
        has_handler = _watch.pass_on()
        if self._after == "signal" and not has_handler:
            _watch._deliver()
        raise SystemExit(_EXIT_STATUS)

    def close(self) -> None:
        """Restores the earlier handler; a signal that no state was saved for takes effect now."""
        if os.getpid() != self._process:
            # The signal was the parent's, and is handled there.
            return
        is_pending = self.is_pending and self._after != "return"
        self._is_handled = True
        _watch.remove(self)
        if is_pending and not _watch.watchers:
            log.warning("%s: SIGTERM: closed before another state was saved", self._path)
            if not _watch.pass_on():
                _watch._deliver()
