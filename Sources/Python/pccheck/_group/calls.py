"""The decisions of a call that depend on time, made alike on all ranks.

spec/GROUP.md, "What all ranks decide alike". Every call begins an exchange, and uses the result
of the exchange of the call before: nobody waits, unless another rank is two calls behind.
"""

from __future__ import annotations

import logging
import time

from ..errors import CheckpointError, RanksMissing, TransportFailed
from .transport import SLICE_SECONDS, PendingAnd, Transport, ranks_text
from .words import CallWords

log = logging.getLogger("pccheck")

CALLS = "calls"
_NOTE_AFTER_SECONDS = 1.0


class Calls:
    """The exchanges of the calls of one rank."""

    def __init__(self, path: str, transport: Transport, timeout: float) -> None:
        self._path, self._transport, self._timeout = path, transport, timeout
        self._pending: PendingAnd | None = None
        self._number = 0
        self._has_told = False
        #: Why nothing is agreed on any more.
        self.failure: CheckpointError | None = None

    def turn(
        self, step: int, must_end: bool, free_slot_count: int, interval: int
    ) -> CallWords | None:
        """What the ranks agreed on at the call before; None at the first one.

        Raises ``RanksMissing`` when a rank is more than one call behind for too long.
        """
        if self.failure is not None:
            return None
        try:
            agreed = self.finish()
            words = CallWords.of(must_end, free_slot_count, interval, step)
            self._pending = self._transport.begin_and(CALLS, words)
        except TransportFailed as error:
            self.failure = error
            log.error(
                "%s: %s; the ranks decide nothing together any more: restart the job",
                self._path, error,
            )  # fmt: skip
            return None
        self._number += 1
        if agreed is not None and not agreed.have_same_step and not self._has_told:
            self._has_told = True
            log.error(
                "%s: the ranks called save, maybe_save or is_due with different steps; before "
                "step %d: make the same calls on all ranks", self._path, step,
            )  # fmt: skip
        return agreed

    def finish(self) -> CallWords | None:
        """The result of the exchange that is under way."""
        pending = self._pending
        if pending is None:
            return None
        deadline = time.monotonic() + self._timeout
        note_at = time.monotonic() + _NOTE_AFTER_SECONDS
        while (words := pending.wait(SLICE_SECONDS)) is None:
            now = time.monotonic()
            if now >= note_at:
                note_at = deadline
                self._transport.post(CALLS, self._number)
            if now >= deadline:
                raise self._missing()
        self._pending = None
        return CallWords.joined(words)

    def _missing(self) -> RanksMissing:
        notes = self._transport.posted(CALLS)
        late = [rank for rank, note in enumerate(notes) if (note or 0) < self._number]
        who = ranks_text(late) if late else "another rank"
        return RanksMissing(
            f"{who} did not make call {self._number} of save, maybe_save or is_due in "
            f"{self._timeout:g} s; every rank must make the same calls",
            ranks=late,
        )
