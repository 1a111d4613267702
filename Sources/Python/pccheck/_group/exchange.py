"""The exchange: after each save, all ranks find out whether all of them have it.

spec/GROUP.md, "While training". One thread of each rank takes the saves in their order. It waits
as long as another rank needs, because a slow rank is no error; nobody on the training path waits
for it.
"""

from __future__ import annotations

import atexit
import base64
import json
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.handle import SaveHandle
from ..errors import CheckpointError, TransportFailed, VoidCheckpoint
from .handle import GroupHandle
from .transport import SLICE_SECONDS, Transport, ranks_text
from .words import EndWords

log = logging.getLogger("pccheck")

ENDS = "ends"
# An exchange that takes longer leaves a note for the messages of others.
_NOTE_AFTER_SECONDS = 1.0
_THREAD_NAME = "pccheck-exchange"
# One that waits for another rank is left behind.
_EXIT_SECONDS = 1.0
_SHOWN_RANK_COUNT = 4
_SHOWN_CHARACTER_COUNT = 300


#: What is wrong with the claims of the ranks, by rank; None when they agree.
Compare = Callable[[Mapping[int, bytes]], str | None]


@dataclass
class Save:
    """A save of this rank, in its place among all of an attempt."""

    step: int
    #: None when it did not even begin here.
    handle: GroupHandle | None
    #: Why it did not begin.
    failure: str | None = None
    #: Changes exactly when the layout of the state does.
    structure: bytes = b""
    #: What this rank holds of the state, for the others to compare.
    claims: bytes | None = None

    def wait_ended(self) -> str | None:
        """Waits until the part of this rank is durable; else why it is not."""
        if self.handle is None:
            return self.failure
        try:
            SaveHandle.wait_to_be_copied(self.handle)
        except CheckpointError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class Judgement:
    """What all ranks conclude from what each of them said."""

    #: Why the checkpoint is void; None when it is complete.
    reason: str | None
    ranks: list[int]
    #: The newest step of any rank: those that are behind give theirs up, and follow.
    step: int
    number: int


def judge(
    said: Sequence[Mapping[str, Any]], compare: Compare, is_durable: bool
) -> Judgement:
    """Explains one exchange that was not plainly complete; the same on all ranks.

    ``is_durable`` is what the words of all ranks say, which no record overrules.
    """
    steps = {rank: int(item["step"]) for rank, item in enumerate(said)}
    newest = max(steps.values())
    number = max(int(item["number"]) for item in said)
    failures = {
        rank: str(item["failure"]) for rank, item in enumerate(said) if item["failure"] is not None
    }
    if len(set(steps.values())) > 1:
        behind = [rank for rank, step in steps.items() if step < newest]
        text = f"the ranks saved different steps: {by_value(steps)}"
        return Judgement(text, behind, newest, number)
    if failures:
        shown = list(failures.items())[:_SHOWN_RANK_COUNT]
        text = "; ".join(
            f"rank {rank}: {reason[:_SHOWN_CHARACTER_COUNT]}" for rank, reason in shown
        )
        more = len(failures) - len(shown)
        text += f"; and {more} more ranks" if more else ""
        return Judgement(text, list(failures), newest, number)
    if not is_durable:
        return Judgement("a rank has no durable part, and gave no reason", [], newest, number)
    claims = {
        rank: base64.b64decode(item["claims"])
        for rank, item in enumerate(said)
        if item["claims"] is not None
    }
    return Judgement(compare(claims) if claims else None, [], newest, number)


def by_value(values: Mapping[int, Any]) -> str:
    """``10 on ranks 0, 1; 20 on rank 3``."""
    ranks: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(str(value), []).append(rank)
    return "; ".join(f"{value} on {ranks_text(found)}" for value, found in ranks.items())


_exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()


def _end_all() -> None:
    """Before the interpreter ends: a thread may be about to free the last connections."""
    for exchange in list(_exchanges):
        exchange.stop()
    for thread in threading.enumerate():
        if thread.name == _THREAD_NAME:
            thread.join(_EXIT_SECONDS)


atexit.register(_end_all)


class Exchange:
    """The thread of one rank, and what waits for it."""

    def __init__(
        self,
        path: str,
        transport: Transport,
        decide: Callable[[int, bool], None],
        compare: Compare,
    ) -> None:
        """``decide`` tells the writer the verdict on a sequence."""
        self._path, self._transport = path, transport
        self._decide, self._compare = decide, compare
        self._attempt = self._number = 0
        #: The step of the newest save of this attempt; None before the first one.
        self.last_step: int | None = None
        #: The layout that all ranks have compared in this attempt.
        self.checked_structure: bytes | None = None
        self._saves: deque[Save] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        #: Why no verdict follows any more.
        self.failure: CheckpointError | None = None
        _exchanges.add(self)
        self._counts = {"exchange_count": 0, "exchange_nanoseconds": 0, "void_count": 0}
        self._slowest = 0

    def begin(self, attempt: int) -> None:
        """A new attempt, in which no save has ended yet."""
        with self._changed:
            self._attempt, self._number = attempt, 1
            self.checked_structure = self.last_step = None
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=_THREAD_NAME, daemon=True
                )
                self._thread.start()

    def add(self, save: Save) -> None:
        """The next save of this rank."""
        with self._changed:
            self._saves.append(save)
            self.last_step = save.step
            self._changed.notify_all()

    def drain(self, timeout: float | None) -> bool:
        """Waits until there is a verdict on every save; False when the seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._saves:
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                self._changed.wait(SLICE_SECONDS)
        return True

    @property
    def open_steps(self) -> list[int]:
        """The steps of the saves without a verdict, oldest first."""
        with self._changed:
            return [save.step for save in self._saves]

    def stop(self) -> None:
        """Ends the thread once it has done what it can. It never waits."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """What was counted."""
        return {
            **self._counts,
            "slowest_exchange_nanoseconds": self._slowest,
            "waiting_exchange_count": len(self._saves),
            "exchange_failure": None if self.failure is None else str(self.failure),
        }

    # -- why it takes so long

    def late_text(self) -> str:
        """Which ranks have not ended the save that this rank waits for, as far as known."""
        if self.failure is not None:
            return str(self.failure)
        save = next(iter(self._saves), None)
        if save is None:
            return "the last exchange has just ended"
        late = self.late_ranks()
        if late:
            return f"{ranks_text(late)} did not end the save of step {save.step}"
        return f"the exchange of step {save.step} is under way"

    def late_ranks(self) -> list[int]:
        """The ranks without a note that their save has ended."""
        number = self._number
        notes = self._transport.posted(self._topic)
        return [rank for rank, note in enumerate(notes) if note is None or note < number]

    @property
    def _topic(self) -> str:
        return f"{ENDS}/{self._attempt}"

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._saves and not self._is_stopped:
                    self._changed.wait()
                if not self._saves:
                    return
                save = self._saves[0]
            try:
                is_done = self._exchange(save)
            except TransportFailed as error:
                self._fail(error)
                is_done = True
            except Exception as error:
                log.exception("%s: the exchange of step %d failed", self._path, save.step)
                self._fail(TransportFailed(f"the exchange of step {save.step} failed: {error}"))
                is_done = True
            if is_done:
                with self._changed:
                    self._saves.popleft()
                    self._changed.notify_all()
            del save

    def _exchange(self, save: Save) -> bool:
        """Finds the verdict on a save; False when it must be exchanged again, with others."""
        failure = save.wait_ended()
        if self.failure is not None:
            self._settle(save, self.failure)
            return True
        # A restart compares the claims of a part that has some, and so must the verdict: a rank
        # that began this save before it knew that the layout was checked made them as well.
        is_same = save.claims is None and save.structure == self.checked_structure
        began = time.perf_counter_ns()
        words = self._joined(EndWords.of(failure is None, is_same, save.step, self._number))
        judgement = None
        if not words.is_complete:
            judgement = judge(self._said(save, failure), self._compare, words.is_durable)
        self._count(time.perf_counter_ns() - began)
        if judgement is None:
            self._number += 1
            self._settle(save, None)
            return True
        self._number = judgement.number + 1
        if judgement.reason is None:
            self.checked_structure = save.structure
            self._settle(save, None)
            return True
        if judgement.step > save.step or words.have_same_step:
            self._settle(save, self._void(save, judgement))
            return True
        # Others gave up an older step; this one is still to come on them.
        log.error("%s: step %d: %s", self._path, save.step, judgement.reason)
        return False

    def _joined(self, words: list[int]) -> EndWords:
        pending = self._transport.begin_and(ENDS, words)
        joined = pending.wait(_NOTE_AFTER_SECONDS)
        if joined is None:
            self._transport.post(self._topic, self._number)
            joined = pending.wait(None)
        assert joined is not None
        return EndWords.joined(joined)

    def _said(self, save: Save, failure: str | None) -> list[dict[str, Any]]:
        claims = None if save.claims is None else base64.b64encode(save.claims).decode("ascii")
        own = {
            "step": save.step, "number": self._number, "failure": failure, "claims": claims,
        }  # fmt: skip
        data = json.dumps(own).encode("utf-8")
        return [json.loads(item) for item in self._transport.gather(data, None, ENDS)]

    def _count(self, nanoseconds: int) -> None:
        self._counts["exchange_count"] += 1
        self._counts["exchange_nanoseconds"] += nanoseconds
        self._slowest = max(self._slowest, nanoseconds)

    def _void(self, save: Save, judgement: Judgement) -> VoidCheckpoint:
        self._counts["void_count"] += 1
        return VoidCheckpoint(
            f"the checkpoint of step {save.step} is void on all ranks: {judgement.reason}",
            ranks=judgement.ranks,
        )

    def _settle(self, save: Save, error: CheckpointError | None) -> None:
        """Records the verdict: with the writer, in the handle, in the log."""
        handle = save.handle
        if isinstance(error, VoidCheckpoint):
            log.error("%s: %s", self._path, error)
        if handle is None:
            return
        if not isinstance(error, TransportFailed):
            try:
                self._decide(handle.sequence, error is None)
            except CheckpointError as failure:
                log.error(
                    "%s: the verdict on step %d was not recorded: %s",
                    self._path, save.step, failure,
                )  # fmt: skip
        if error is None:
            handle._verdict.complete(self._attempt)
            log.info(
                "step %d is durable on all ranks (%d) %.1f ms after its save",
                save.step, self._transport.world_size, 1e3 * (handle._verdict.seconds or 0),
            )  # fmt: skip
        else:
            handle._verdict.fail(error)

    def _fail(self, error: TransportFailed) -> None:
        """No verdict follows; saves continue while slots last."""
        if self.failure is None:
            # Their frames hold the last call, and so connections that others wait on after close().
            error.__traceback__ = error.__context__ = None
            self.failure = error
            log.error(
                "%s: %s; no checkpoint becomes known to be durable on all ranks any more, and "
                "saves continue while slots last: restart the job",
                self._path, error,
            )  # fmt: skip
        self._settle(self._saves[0], self.failure)
