"""The writer of one rank, as the exchange knows it: without the checkpointer, which may be dropped
while the thread of the exchange lives."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .._core.engine import Engine
from .._core.group import Base, begin_attempt, decide
from ..errors import Closed


_REMEMBERED_COUNT = 32


class GroupWriter:
    """The engine of the file that is open, and the attempt that it takes part in."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._lock = threading.RLock()
        #: The attempt that has begun; 0 before the first one.
        self.attempt = 0
        # The newest verdicts of the attempt, by sequence: more than a file has slots.
        self._verdicts: dict[int, bool] = {}

    def opened(self, engine: Engine) -> None:
        """The file was opened, for the first time or again after it grew."""
        with self._lock:
            if self.attempt:
                begin_attempt(engine, self.attempt)
                for sequence, is_complete in self._verdicts.items():
                    decide(engine, sequence, is_complete)
            self._engine = engine

    def begin(self, attempt: int, base: Base | None, complete: Sequence[int]) -> None:
        """Begins an attempt, durably."""
        with self._lock:
            assert self._engine is not None
            begin_attempt(self._engine, attempt, base, complete)
            self.attempt = attempt
            self._verdicts.clear()

    def decide(self, sequence: int, is_complete: bool) -> None:
        """Records a verdict. After the file was closed there is nothing to record."""
        with self._lock:
            self._verdicts[sequence] = is_complete
            if len(self._verdicts) > _REMEMBERED_COUNT:
                del self._verdicts[min(self._verdicts)]
            if self._engine is not None and self._engine.is_open:
                try:
                    decide(self._engine, sequence, is_complete)
                except Closed:
                    return

    def hold(self) -> threading.RLock:
        """While it is held, no verdict is recorded: the file is closed for a moment."""
        return self._lock
