"""A checkpoint of a group on its way: durable here, then durable on all ranks or void."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._core import native
from .._core.arguments import seconds
from .._core.handle import Outcome, SaveHandle
from ..errors import CheckpointError, NoCheckpoint, RanksMissing
from .transport import SLICE_SECONDS


@dataclass(frozen=True)
class GroupOutcome:
    """How a checkpoint of a group ended."""

    #: ``durable on all ranks``, or ``skipped``.
    kind: str
    step: int
    #: The attempt in which it was saved; with the step it is the name of the checkpoint.
    attempt: int
    #: Seconds from ``save`` until this rank knew; None when skipped.
    seconds: float | None

    @property
    def durable(self) -> bool:
        """True when the checkpoint is durable on all ranks."""
        return self.kind == "durable on all ranks"


class Verdict:
    """What all ranks found out about one checkpoint; set once, by the exchange."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self.error: CheckpointError | None = None
        self.attempt = 0
        self.seconds: float | None = None
        self._began = time.monotonic()

    def complete(self, attempt: int) -> None:
        """It is durable on all ranks."""
        self.attempt, self.seconds = attempt, time.monotonic() - self._began
        self._ended.set()

    def fail(self, error: CheckpointError) -> None:
        """It is void, or nobody will ever know."""
        self.error = error
        self._ended.set()

    @property
    def is_known(self) -> bool:
        """Whether there is a verdict."""
        return self._ended.is_set()

    def wait(self, timeout: float | None) -> bool:
        """Waits for it; False when the seconds are over. Signals are heard meanwhile."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended.wait(SLICE_SECONDS):
            if deadline is not None and time.monotonic() >= deadline:
                return self._ended.is_set()
        return True


class GroupHandle(SaveHandle):
    """One checkpoint of this rank, and of the group. Dropping the handle does not stop it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._verdict = Verdict()
        # Set with the place in the queue of exchanges.
        self._late: Callable[[], str] = str
        self._group_timeout: float | None = None

    def wait_group(self, timeout: float | None = None) -> GroupOutcome:
        """Returns when the checkpoint is durable on all ranks; ``wait`` is for this rank alone.

        A skipped one is skipped on all ranks. Raises why it failed on this rank,
        ``VoidCheckpoint`` with the ranks that failed, ``TransportFailed`` when the ranks lost each
        other, and ``RanksMissing`` after ``timeout`` seconds, by default those of the checkpointer.
        """
        limit = self._group_timeout if timeout is None else seconds(timeout, "timeout")
        began = time.monotonic()
        outcome = self.wait(limit)
        if outcome.kind == "skipped":
            return GroupOutcome("skipped", self.step, 0, None)
        left = None if limit is None else max(0.0, limit - (time.monotonic() - began))
        if not self._verdict.wait(left):
            raise RanksMissing(
                f"step {self.step} is durable on this rank, and after {limit:g} s not known to be "
                f"durable on all ranks: {self._late()}",
                ranks=[],
            )
        if self._verdict.error is not None:
            raise self._verdict.error
        return GroupOutcome(
            "durable on all ranks", self.step, self._verdict.attempt, self._verdict.seconds
        )

    @property
    def is_complete(self) -> bool:
        """True once the checkpoint is known to be durable on all ranks."""
        return self._verdict.is_known and self._verdict.error is None

    @property
    def is_to_be_copied(self) -> bool:
        """Whether a copy of it may begin, which holds its slot from then on."""
        return self.state in ("skipped", "failed") or self._verdict.is_known

    def wait_to_be_copied(self) -> int:
        """The sequence of the checkpoint, once all ranks have it."""
        sequence = super().wait_to_be_copied()
        self._verdict.wait(None)
        if self._verdict.error is not None:
            raise NoCheckpoint(
                f"step {self.step} is not durable on all ranks: {self._verdict.error}",
                code=native.NO_CHECKPOINT,
            )
        return sequence


class SkippedHandle(GroupHandle):
    """A save that all ranks left out, because one of them had no slot for it."""

    def __init__(self, step: int) -> None:
        super().__init__(step, [])

    @property
    def state(self) -> str:
        """``skipped``."""
        self._check_process()
        return "skipped"

    @property
    def sequence(self) -> int:
        """0: it has no place in the file."""
        return 0

    def wait_staged(self, timeout: float | None = None) -> None:
        """There is nothing to wait for."""

    def wait(self, timeout: float | None = None) -> Outcome:
        """How it ended."""
        return Outcome("skipped", self.step, 0, None, None, None)
