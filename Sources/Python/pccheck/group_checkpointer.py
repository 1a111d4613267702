"""What a checkpointer of many processes has, whatever its framework.

spec/GROUP.md has the rules. ``pccheck.distributed`` and ``pccheck.jax`` are this for torch and JAX.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from ._core.arguments import seconds, step_number
from ._core.engine import wait_staged_everywhere
from ._core.handle import SaveHandle
from ._core.past import Past
from ._core.reader import CheckpointInfo, Reader
from ._files.copies import KeepHandle
from ._group.assembled import load_candidate
from ._group.calls import CALLS, Calls
from ._group.claims import Digests, compare
from ._group.decision import Candidate
from ._group.division import Division
from ._group.exchange import ENDS, Exchange, Save
from ._group.files import file_name, report_of, usable_folder
from ._group.handle import GroupHandle, GroupOutcome, SkippedHandle
from ._group.restart import CandidateFiles, Choice, Meeting, kept_claims
from ._group.transport import Transport, counted_ranks
from ._group.words import NOT_NOW, CallWords, quarter_octaves, steps_of
from ._group.writer import GroupWriter
from ._state.comparing import StateMismatch
from ._state.request import Loading
from .checkpointer import BaseCheckpointer
from .errors import (
    Busy,
    CheckpointError,
    Forked,
    InvalidArgument,
    NoCheckpoint,
    RanksMissing,
    StepBackwards,
    Timeout,
)
from .policies import Auto, Every

log = logging.getLogger("pccheck")

#: How many seconds any call waits for other ranks by default.
TIMEOUT_SECONDS = 600.0
#: What a rank that leaves with an error waits for the others.
LEAVING_SECONDS = 5.0
# What a rank that knows every verdict gives the others to learn theirs.
_FAREWELL_SECONDS = 5.0
_DEFAULT_RETAIN = 2
_DEFAULT_IN_FLIGHT = 2


class GroupCheckpointer(BaseCheckpointer):
    """Saves on all ranks, or on none. Put it before the checkpointer of a framework."""

    #: What all ranks must give alike besides the options of every group.
    _alike_options: dict[str, Any] = {}
    #: Where another number of ranks saved, what each stored for itself in these parts comes from
    #: the first one, as with frameworks whose first rank saves for all; None stands for all parts.
    #: In other parts it has to be equal on all.
    _first_rank_parts: frozenset[str] | None = frozenset()

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        transport: Transport,
        timeout: float = TIMEOUT_SECONDS,
        on_busy: str = "wait",
        busy_timeout: float | None = None,
        **options: Any,
    ) -> None:
        """Prepares the file of this rank in the folder ``path``; a restart opens it."""
        for name in ("rank", "world_size"):
            if name in options:
                raise InvalidArgument(
                    f"{name} comes from the group; leave it out, or use a checkpointer for one "
                    "process, such as pccheck.torch.Checkpointer, for a file without a group"
                )
        self._timeout = seconds(timeout, "timeout")
        self._folder = usable_folder(path)
        self._transport = transport
        self._meeting = Meeting(self._transport, self._folder, self._timeout)
        self._group_writer = GroupWriter()
        decide = self._group_writer.decide
        self._exchange = Exchange(self._folder, self._transport, decide, compare)
        self._division: Division | None = None
        self._calls: Calls | None = None
        self._on_busy = on_busy
        # What the restart decided; an attempt begins once every rank has a file.
        self._choice: Choice | None = None
        self._base: Candidate | None = None
        self._has_begun = False
        self._is_in_order = False
        self._since_save = 0
        self._agreed: CallWords | None = None
        self._agrees_to_end = self._has_agreed_to_end = self._has_taken_turn = False
        self._last_handle: GroupHandle | None = None
        self._closing_seconds = self._timeout
        options.setdefault("in_flight", _DEFAULT_IN_FLIGHT)
        options.setdefault("retain", _DEFAULT_RETAIN)
        super().__init__(
            os.path.join(self._folder, file_name(self.rank, self.world_size)),
            on_busy=on_busy,
            busy_timeout=self._timeout if busy_timeout is None else busy_timeout,
            rank=self.rank,
            world_size=self.world_size,
            **options,
        )
        # Where nobody calls close().
        weakref.finalize(self, self._exchange.stop)

    @property
    def rank(self) -> int:
        """The number of this process in the group, from 0."""
        return self._transport.rank

    @property
    def world_size(self) -> int:
        """The number of processes in the group."""
        return self._transport.world_size

    @property
    def folder(self) -> str:
        """The folder of the run, as an absolute path; ``path`` is the file of this rank."""
        return self._folder

    # -- opening

    def _open_or_create(self) -> None:
        """A restart opens the file, so that all ranks hear of it when one of them cannot."""
        self._file_options = replace(self._file_options, is_of_group=True)
        # Whether a save waits, all ranks decide; then it only waits for readers.
        self._engine_options = replace(self._engine_options, on_busy="wait")

    def _open_engine(self, past: Past | None = None) -> None:
        super()._open_engine(past)
        assert self._engine is not None
        self._engine.handle_type = GroupHandle
        self._group_writer.opened(self._engine)

    def _reshape(self, shape: Any) -> None:
        with self._group_writer.hold():
            super()._reshape(shape)

    def _open_own(self) -> CheckpointError | None:
        """Opens the file of this rank if there is one; returns why that is not possible."""
        if self._engine is not None:
            self._engine.wait_finished()
            return None
        try:
            if os.path.exists(self._path):
                self._open()
        except CheckpointError as error:
            return error
        return None

    # -- the restart

    def _alike(self, call: str, step: int | None) -> dict[str, Any]:
        """What all ranks must give alike."""
        preemption = self._preemption_options
        return {
            "call": call, "step": step, "on_busy": self._on_busy, "policy": repr(self._policy),
            "on_sigterm": preemption.on_sigterm, "after_sigterm": preemption.after_sigterm,
            "in_flight": self._file_options.in_flight, "retain": self._file_options.retain,
            **self._alike_options,
        }  # fmt: skip

    def _restart(self, call: str, step: int | None = None) -> Choice:
        """Steps 1 and 2: what there is to continue from."""
        self._check_open()
        self._drain()
        failure = self._open_own()
        has_file = self._engine is not None
        own = report_of(self._path) if os.path.exists(self._path) else None
        choice = self._meeting.choose(
            own, failure, has_file or self._file_options.capacity_byte_count is not None,
            self._alike(call, step), uuid.uuid4().bytes,
        )  # fmt: skip
        self._file_options = replace(self._file_options, run_uuid=choice.run)
        self._transport.open_channels([ENDS], self._timeout)
        if self._decides_together:
            self._transport.open_channels([CALLS], self._timeout)
            if self._calls is None:
                self._calls = Calls(self._folder, self._transport, self._timeout)
        return choice

    def _drain(self) -> None:
        """Before another attempt: what the last one has under way ends on all ranks."""
        if self._exchange.failure is not None:
            raise self._exchange.failure
        if self._engine is not None:
            self._engine.wait_finished()
        if not self._exchange.drain(self._timeout):
            raise RanksMissing(
                f"{self._folder}: the last saves are not known to be durable on all ranks after "
                f"{self._timeout:g} s: {self._exchange.late_text()}",
                ranks=self._exchange.late_ranks(),
            )
        if self._calls is not None:
            self._calls.finish()
        self._agreed = None

    def _continue_from(self, choice: Choice, base: Candidate | None) -> None:
        """Step 4, at once when every rank has a file; else the first save makes it."""
        self._choice, self._base, self._has_begun = choice, base, False
        if not choice.have_all_files:
            return
        error: Exception | None = None
        try:
            if self._engine is None:
                capacity = self._file_options.capacity_byte_count
                assert capacity is not None
                self._create(capacity)
        except Exception as failure:
            error = failure
        self._begin_attempt(error)

    def _begin_attempt(self, error: Exception | None = None) -> None:
        """Begins the attempt durably on this rank, and returns once all ranks have."""
        assert self._choice is not None
        choice, base = self._choice, self._base
        rank, world_size = self.rank, self.world_size
        if error is None:
            try:
                self._group_writer.begin(
                    choice.attempt, choice.base(base, rank, world_size),
                    choice.older_than(base, rank, world_size),
                )  # fmt: skip
            except CheckpointError as failure:
                error = failure
        try:
            self._meeting.agree(error)
        except CheckpointError:
            # Some ranks may have begun it: its number is used up.
            self._choice = None
            raise
        self._has_begun = True
        self._exchange.begin(choice.attempt)
        log.info(
            "%s: attempt %d begins on %s, %s",
            self._folder, choice.attempt, counted_ranks(world_size),
            "at the beginning" if base is None else f"from {base}",
        )  # fmt: skip

    def _ensure_choice(self, call: str) -> None:
        """The first call of a job that does not resume: it continues behind the newest one."""
        if self._choice is None:
            choice, base, _ = self._meeting.walk(
                self._restart(call), self._claims_of, self._verify_candidate
            )
            self._continue_from(choice, base)

    # -- loading

    def _claims_of(self, candidate: Candidate) -> dict[int, Digests]:
        """What this rank reads for all of the claims of a checkpoint."""
        return kept_claims(candidate, self._ranks_to_read(candidate), self._fingerprint)

    def _ranks_to_read(self, candidate: Candidate) -> Sequence[int]:
        """The parts that this rank reads for all: its own, or its share of another world's."""
        if candidate.world_size == self.world_size:
            return [self.rank]
        return range(self.rank, candidate.world_size, self.world_size)

    def _verify_candidate(self, candidate: Candidate, *, is_whole: bool = False) -> None:
        """Reads what nobody has read: the parts that no superblock names, or every part."""
        with CandidateFiles(candidate, self._fingerprint) as files:
            for rank in self._ranks_to_read(candidate):
                files.open([rank])
                if is_whole or rank in candidate.unnamed:
                    files.readers[rank].verify()

    def _load_candidate(
        self, candidate: Candidate, loading: Loading
    ) -> tuple[CheckpointInfo, Any]:
        with CandidateFiles(candidate, self._fingerprint) as files:
            found = load_candidate(
                files, candidate, self._folder, self.rank, self.world_size, loading,
                first_parts=self._first_rank_parts,
            )  # fmt: skip
        if loading.proves_rest:
            self._verify_candidate(candidate, is_whole=True)
        return found

    def _load_together(
        self, call: str, step: int | None, loading: Loading
    ) -> tuple[CheckpointInfo, Any] | None:
        choice = self._restart(call, step)
        wait_staged_everywhere()
        try:
            choice, base, found = self._meeting.walk(
                choice, self._claims_of,
                lambda candidate: self._load_candidate(candidate, loading),
            )  # fmt: skip
        except Exception as error:
            loading.explain(error)
            raise
        if found is None:
            if step is not None:
                raise self._not_complete(choice, f"step {step} is")
            self._continue_from(choice, None)
            return None
        self._loaded = found[0]
        self._continue_from(choice, base)
        return found

    def _not_complete(self, choice: Choice, what: str) -> NoCheckpoint:
        held = ", ".join(str(item.step) for item in choice.decision.complete) or "none"
        return NoCheckpoint(
            f"{self._folder}: {what} not durable on all ranks; these steps are: {held}", code=7
        )

    def _load(self, step: int | None, loading: Loading) -> Any:
        step = None if step is None else step_number(step)
        found = self._load_together("load", step, loading)
        if found is None:
            raise NoCheckpoint(f"{self._folder}: nothing is durable on all ranks yet", code=7)
        return found[1]

    def _resume_state(self, loading: Loading, step: int | None = None) -> tuple[int, Any] | None:
        self._resume_report = None
        step = None if step is None else step_number(step)
        try:
            found = self._load_together("resume", step, loading)
        except StateMismatch as mismatch:
            self._resume_report = mismatch.report
            raise
        if found is None:
            return None
        info, state = found
        self._resume_report = loading.report
        if loading.report is not None and not loading.report.is_exact:
            log.warning("%s", loading.report)
        log.info("%s: resumed %s", self._folder, self._base)
        return info.step + 1, state

    def rewind(self, step: int) -> None:
        """Accepts ``step`` and later ones again on all ranks, because training went back.

        Collective. A new attempt continues from the newest complete checkpoint at or before
        ``step``; ``NoCheckpoint`` when there is none. ``load(step)`` does this too.
        """
        step = step_number(step)
        choice, base, _ = self._meeting.walk(
            self._restart("rewind", step), self._claims_of, self._verify_candidate
        )
        if base is None:
            raise self._not_complete(choice, f"no step at or before {step} is")
        self._continue_from(choice, base)

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints in the file of this rank, in the order in which ``resume`` tries them.

        The newest ones may not be durable on all ranks.
        """
        self._check_open()
        if not os.path.exists(self._path):
            return []
        with Reader(self._path, self._fingerprint) as reader:
            return reader.list()

    # -- saving

    @property
    def _decides_together(self) -> bool:
        """Whether something depends on time, and so on what all ranks knew at the call before."""
        is_asked = self._on_busy != "wait" or self._preemption_options.is_wanted
        return is_asked or self._is_timed

    @property
    def _is_timed(self) -> bool:
        """Whether the policy asks a clock, or might."""
        policy = self._policy
        return policy is not None and not (isinstance(policy, Every) and policy.is_of_steps)

    def _save_together(
        self, step: int, urgent: bool, save: Callable[[], SaveHandle]
    ) -> GroupHandle:
        """A save of this rank in its place among those of all ranks, unless all leave it out."""
        with self._in_order(step):
            self._ensure_choice("save")
            if not self._has_taken_turn:
                self._turn(step, NOT_NOW)
            self._has_taken_turn = False
            if self._is_busy() and not urgent:
                return self._skip(step)
            self._check_order(step)
            handle = save()
        assert isinstance(handle, GroupHandle)
        return handle

    def _check_order(self, step: Any) -> None:
        """Refuses a step that this rank failed to begin: others may hold it, under this name."""
        last = self._exchange.last_step
        if self._has_begun and last is not None and step_number(step) <= last:
            raise StepBackwards(
                f"{self._path}: step {step} is not above step {last}, the last one of this attempt "
                "that a rank began; save a later step, or go back with all ranks: rewind() begins "
                "a new attempt"
            )

    @contextmanager
    def _in_order(self, step: Any) -> Iterator[None]:
        """Keeps the count of saves alike on all ranks when one of them raises."""
        self._is_in_order = False
        try:
            yield
        except Exception as error:
            if not self._is_closed and not isinstance(error, Forked):
                self._tell_of_failure(step, error)
            raise

    def _tell_of_failure(self, step: Any, error: Exception) -> None:
        """Lets the other ranks know that this one did not begin a save."""
        if self._is_in_order or self._choice is None or not isinstance(step, int):
            return
        if not self._has_begun:
            # They wait for this rank to begin the attempt. This raises the error again.
            self._begin_attempt(error)
        if isinstance(error, (Busy, Timeout)):
            error.reword(f"{error}; {self._exchange.late_text()}")
        self._exchange.add(Save(step, None, f"{type(error).__name__}: {error}"))

    def _divide(self, divide: Callable[[bool], Division]) -> Division:
        """What this rank stores of a state. ``divide`` makes claims when it is asked to, which it
        is when the ranks have not compared this layout yet."""
        checked = self._exchange.checked_structure
        division = divide(checked is None)
        if division.claims is None and division.structure != checked:
            division = divide(True)
        self._division = division
        return division

    def _begin(self, begin: Any, capacity: Any) -> SaveHandle:
        if not self._has_begun:
            self._begin_attempt()
        handle = super()._begin(begin, capacity)
        assert isinstance(handle, GroupHandle)
        handle._late, handle._group_timeout = self._exchange.late_text, self._timeout
        division, self._division = self._division, None
        assert division is not None
        save = Save(handle.step, handle, None, division.structure, division.claims)
        self._exchange.add(save)
        self._is_in_order = True
        self._last_handle = handle
        self._since_save = 0
        return handle

    def _maybe_save(self, step: int, save: Callable[[], SaveHandle]) -> SaveHandle | None:
        """Saves when the policy asks for it; alike on all ranks."""
        if not self.is_due(step):
            return None
        with self._after_turn():
            return save()

    @contextmanager
    def _after_turn(self) -> Iterator[None]:
        """For a save after ``is_due``, in which the ranks have met already."""
        self._has_taken_turn = True
        try:
            yield
        finally:
            self._has_taken_turn = False

    def is_due(self, step: int) -> bool:
        """Whether the policy wants this step to be saved; the same on all ranks."""
        self._check_open()
        step = step_number(step)
        self._ensure_choice("save")
        is_due, wish = self._wish(step)
        self._turn(step, wish)
        if self._must_end():
            return True
        if self._policy is None:
            return super().is_due(step)
        if not self._is_timed:
            return is_due
        agreed = self._agreed
        if agreed is None or agreed.interval >= NOT_NOW:
            return False
        return self._since_save >= steps_of(agreed.interval)

    def _wish(self, step: int) -> tuple[bool, int]:
        """Whether the policy of this rank wants the step, and the interval that it wants."""
        self._since_save += 1
        policy = self._policy
        if policy is None:
            return False, NOT_NOW
        is_due = policy.is_due(step)
        choice = policy.choice if isinstance(policy, Auto) else None
        interval = 0 if choice is None else choice.interval
        if is_due:
            # The ranks may have met at the call before; this one is late already.
            return True, quarter_octaves(min(interval or self._since_save, self._since_save))
        return False, quarter_octaves(max(interval, self._since_save + 2))

    def _turn(self, step: int, wish: int) -> None:
        """Exchanges what this rank knows at this call, and learns what all knew at the last one."""
        if self._calls is None:
            return
        preemption = self._preemption
        must_end = preemption is not None and preemption.is_pending
        self._agreed = self._calls.turn(step_number(step), must_end, self._free_count(), wish)
        if self._calls.failure is not None:
            # The group is lost; what this rank has may still be of use.
            self._agrees_to_end = must_end
        elif self._agreed is not None and self._agreed.must_end:
            self._agrees_to_end = not self._has_agreed_to_end
        self._has_agreed_to_end |= self._agrees_to_end

    def _free_count(self) -> int:
        """Slots that a save could take now. Before the first one, all are free."""
        if self._on_busy == "wait" or self._engine is None:
            return NOT_NOW
        group = self._engine.stats()["group"]
        return NOT_NOW if group is None else int(group["free_slot_count"])

    def _is_busy(self) -> bool:
        """Whether all ranks leave this save out, because one of them has no slot for it."""
        if self._on_busy == "wait" or self._agreed is None or self._must_end():
            return False
        # What the save of the call before took was still free when it was counted.
        taken = int(self._since_save <= 1 and self._last_handle is not None)
        return self._agreed.free_slot_count - taken <= 0

    def _skip(self, step: int) -> GroupHandle:
        step = step_number(step)
        if self._on_busy == "fail":
            raise Busy(f"step {step}: a rank has no free slot, and on_busy is 'fail'", code=5)
        handle = SkippedHandle(step)
        if self._policy is not None:
            self._policy.began(step, handle)
        return handle

    def wait_group(self, timeout: float | None = None) -> GroupOutcome | None:
        """Waits until the last save is durable on all ranks; None when nothing was saved.

        See ``GroupHandle.wait_group``.
        """
        return None if self._last_handle is None else self._last_handle.wait_group(timeout)

    # -- the end

    def _must_end(self) -> bool:
        if self._exchange.failure is not None:
            self._check_slots(self._exchange.failure)
        return self._agrees_to_end

    def _check_slots(self, failure: CheckpointError) -> None:
        """Called while a save waits for a slot: raises when none can become free any more."""
        if self._engine is None:
            return
        stats = self._engine.stats()
        group = stats["group"]
        if group and not group["free_slot_count"] and not stats["in_flight_count"]:
            raise Busy(
                f"every slot holds a checkpoint that may be durable on all ranks, and no verdict "
                f"follows: {failure}",
                code=5,
            )

    def _end_with(self, handle: SaveHandle) -> None:
        assert self._preemption is not None and isinstance(handle, GroupHandle)
        self._agrees_to_end = False
        # The signal may have come to another rank only.
        self._preemption.notice()
        try:
            handle.wait_group(self._preemption_options.grace)
        except CheckpointError as error:
            log.error("%s: SIGTERM: step %d: %s", self._folder, handle.step, error)
        super()._end_with(handle)

    def should_stop(self) -> bool:
        """True once all ranks know that SIGTERM came to one of them; see ``on_sigterm``.

        They know at the second call of ``save``, ``maybe_save`` or ``is_due`` after it.
        """
        return self._has_agreed_to_end

    def stats(self) -> dict[str, Any]:
        """What was counted on this rank; ``group`` has what concerns all ranks.

        That is the attempt, the watermark (attempt and step of the newest checkpoint known to be
        durable on all ranks), the checkpoints without a verdict, free slots, and how long the
        exchanges took in nanoseconds.
        """
        stats = super().stats()
        if stats:
            stats["group"] = {**(stats["group"] or {}), **self._exchange.stats()}
        return stats

    def keep(
        self, step: int, path: str | os.PathLike[str], *, replace: bool = False
    ) -> KeepHandle:
        """Begins a copy of the part of this rank, into a file of its own in the folder ``path``.

        As ``pccheck.torch.Checkpointer.keep``; a checkpoint that is not yet known to be durable on
        all ranks is copied once it is.
        """
        folder = usable_folder(path)
        file = os.path.join(folder, os.path.basename(self._path))
        return super().keep(step, file, replace=replace)

    def close(self) -> None:
        """Waits until the last checkpoint is durable on all ranks, and closes the file.

        Collective. The wait for other ranks is bounded by ``timeout``: an error in the log names
        those that did not come. After that it gives them up to five seconds to learn the same, so
        that no connection that they use is closed. Copies and writes of this rank that are under
        way are waited for without a bound, since they use its memory. The file of this rank is
        closed in any case.
        """
        farewell = 0.0
        try:
            if not self._is_closed and self._process == os.getpid() and self._engine is not None:
                self._engine.wait_finished()
                end = time.monotonic() + self._closing_seconds
                if self._exchange.drain(self._closing_seconds):
                    if self._exchange.failure is None:
                        farewell = min(end - time.monotonic(), _FAREWELL_SECONDS)
                else:
                    log.error(
                        "%s: closed before the last saves were known to be durable on all ranks, "
                        "after %g s: %s",
                        self._folder, self._closing_seconds, self._exchange.late_text(),
                    )  # fmt: skip
        finally:
            try:
                super().close()
            finally:
                self._exchange.stop()
                self._transport.close(farewell)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            # The others may wait for this rank, and not come.
            self._closing_seconds = min(self._closing_seconds, LEAVING_SECONDS)
        super().__exit__(kind, error, trace)

