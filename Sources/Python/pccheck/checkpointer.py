"""The checkpointer: one file, several checkpoints in flight, the newest valid one on resume."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from ._core import native, open_files
from ._core.arguments import save_options, step_number
from ._core.damage import damaged_slots
from ._core.debug import Watch
from ._core.engine import Engine, Pin, wait_staged_everywhere
from ._core.handle import Guard, SaveHandle
from ._core.options import EngineOptions, FileOptions, PreemptionOptions
from ._core.preemption import Preemption
from ._core.reader import CheckpointInfo, Reader
from ._core.saver import changes_nothing
from ._files.shape import capacity_for
from ._state.comparing import ResumeReport, StateMismatch
from ._state.document import DOCUMENT_KEY
from ._state.encoder import Encoder
from ._state.loading import described, load_from, load_with, loading_of
from ._state.memory import ArrayMemory
from ._state.request import Loading
from .errors import InvalidArgument, NoCheckpoint
from .keeping import Keep, Keeper, KeepsCheckpoints, note_text
from .policies import Auto, Every, Policy

log = logging.getLogger("pccheck")
changes_nothing(__file__)

_Self = TypeVar("_Self", bound="BaseCheckpointer")

_USER_METADATA_BYTE_LIMIT = 2048


class BaseCheckpointer(KeepsCheckpoints):
    """What every kind of checkpointer has. Use one of its subclasses."""

    #: Tells readers of the extracted file which framework the tensors are for.
    _framework = "np"
    _memory = ArrayMemory()

    def __init__(
        self,
        path: str | os.PathLike[str],
        in_flight: int | None = None,
        retain: int | None = None,
        capacity: int | str | None = None,
        chunk: int | str | None = None,
        codec: str = "none",
        fingerprint: str | None = None,
        on_busy: str = "wait",
        busy_timeout: float | None = None,
        pool: int | str | None = None,
        backend: str = "auto",
        rank: int = 0,
        world_size: int = 1,
        *,
        zstd_level: int = 1,
        prealloc: str = "default",
        resize: bool | None = None,
        snapshot_workers: int | None = None,
        writer_workers: int | None = None,
        allow_network: bool = False,
        deep_flush: bool = False,
        pin: bool | str | Pin | None = False,
        policy: Policy | int | None = None,
        on_sigterm: str | None = None,
        after_sigterm: str = "exit",
        grace: float = 30.0,
        debug: str | bool | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Opens and recovers the file at ``path`` for writing, or prepares to create it.

        The shape of the file. An existing file keeps its own; a WARNING lists what differs.

        - ``in_flight`` (2) and ``retain`` (1): how many checkpoints are filled and kept.
        - ``capacity``: the largest state in bytes. Without it the first ``save`` creates the file
          for its state and 10 % + 1 MiB more, and the file grows when a later state does not fit.
        - ``chunk``: the unit of copying, digests and compression, in bytes.
        - ``prealloc``: ``zero`` writes every byte of a new file.
        - ``resize``: True reshapes an existing file to ``in_flight``, ``retain`` and ``capacity``,
          and grows a file with a ``capacity`` too. False never changes a file. A resize keeps the
          checkpoints; for a moment it needs room for the old and the new file.
        - ``fingerprint``: names the model and topology. A file with another one is refused.
        - ``rank``, ``world_size``: the place of this process. A file of another one is refused.
        - ``allow_network``: accepts network file systems, which are refused otherwise.

        The engine.

        - ``codec``: ``none``, ``zstd`` or ``planes-zstd``; ``zstd_level`` is its level.
        - ``on_busy``: what a ``save`` does when every slot is in flight: ``wait`` (for at most
          ``busy_timeout`` seconds), ``skip`` or ``fail``.
        - ``pool``: the staging memory in bytes, from one chunk per writer worker up to twice the
          state. The default is the state, at most 2 GiB. With a small pool a save is *staged*
          only as fast as the device writes. ``OutOfMemory`` is raised when the machine or its
          cgroup has less available.
        - ``backend``: ``auto``, ``direct`` (O_DIRECT or an error), ``buffered``, ``io_uring``
          (``auto`` where it is not available: ``stats()`` reports why), or ``pmem`` (persistent
          memory through libpmem2 or an error; ``auto`` uses it for a file on a DAX file system).
        - ``snapshot_workers``, ``writer_workers`` (3): the threads that copy and write.
        - ``deep_flush``: makes persistent memory durable even on a platform that fails to save
          its buffers when the power fails.
        - ``pin``: a callable that registers the pool with a device or locks it. It receives the
          address and the size in bytes when the file is opened, and returns a callable that
          undoes it before the pool is freed. ``pccheck.torch`` pins for CUDA: see there.
        - ``debug="digest"``, or ``PCCHECK_DEBUG=1`` in the environment: digests what is read in
          place before and after it is staged. ``StateChanged`` names the tensors that changed
          meanwhile. Each save then reads the state twice more.

        When to save, and what stays.

        - ``policy``: at which steps ``maybe_save`` saves: a number of steps, or one of
          ``pccheck.policies``.
        - ``on_sigterm="save"``: saves one more state when SIGTERM asks the process to end. The
          next ``save`` or ``maybe_save`` is urgent, waits until it is durable, and logs how much
          of the ``grace`` seconds it took. Then the earlier signal handler runs, if there is one.
          The main thread only can ask for this.
        - ``after_sigterm``: ``exit`` then raises ``SystemExit(143)``, ``signal`` ends the process
          as the signal would, ``return`` continues, for a loop that asks ``should_stop()``.
        - ``keep``: which checkpoints are copied to files of their own: see ``pccheck.Keep``.
        """
        file = FileOptions(
            in_flight, retain, capacity, chunk, prealloc, resize, fingerprint, rank, world_size,
            allow_network,
        )  # fmt: skip
        engine = EngineOptions(
            codec, zstd_level, on_busy, busy_timeout, pool, backend, snapshot_workers,
            writer_workers, deep_flush, self._pinning(pin), debug,
        )  # fmt: skip
        preemption = PreemptionOptions(on_sigterm, after_sigterm, grace)
        self._preemption_options = preemption
        super().__init__(path, file, engine)
        self._policy: Policy | None = None
        if policy is not None:
            self._follow(policy if isinstance(policy, Policy) else Every(policy))
        self._preemption: Preemption | None = None
        self._save_began = 0
        self._blocked_nanoseconds = 0
        self._copied_byte_count = 0
        self._loaded: CheckpointInfo | None = None
        self._resume_report: ResumeReport | None = None
        self._keeper = Keeper(
            self._path, self._fingerprint, file.allow_network, keep, file.in_flight_count
        )
        self._open_or_create()
        if preemption.is_wanted:
            try:
                self._preemption = Preemption(self._path, preemption)
            except BaseException:
                self.close()
                raise

    # -- saving

    def _begin_save(self) -> None:
        """Called first by every ``save``: from here on the caller is blocked."""
        self._check_open()
        self._save_began = time.perf_counter_ns()
        # A thread that enlarges the file closes it for a moment.
        with self._open_lock:
            if self._engine is not None:
                self._engine.check_open()
                self._engine.reap()
            if self._file is not None:
                self._file.check()
        self._keeper.before_save(self._loaded.step if self._loaded else None)

    def _save_state(
        self,
        step: int,
        encoder: Encoder,
        document: str,
        user_metadata: str | Mapping[str, Any] | None,
        urgent: bool = False,
        room: Callable[[], int] = lambda: 0,
        *,
        overlap: bool | None = None,
        guard: Guard | None = None,
    ) -> SaveHandle:
        """Begins a checkpoint of an encoded state.

        Returns once it has copied the memory whose changes ``guard`` would not notice. With
        ``overlap=True`` the caller promises that nothing changes it, and this returns at once;
        with ``overlap=False`` it returns once everything is staged.
        """
        step = step_number(step)
        self._check_open()
        note = native.encode_text(
            note_text(user_metadata), "metadata", _USER_METADATA_BYTE_LIMIT
        )
        metadata = {"format": self._framework, DOCUMENT_KEY: document}
        metadata.update(encoder.metadata)
        if self._engine is None:
            self._make_first_engine(lambda: capacity_for(encoder.entries, metadata, room()))
        until = self._engine_options.busy_deadline()
        is_last = False

        def is_urgent() -> bool:
            # Asked for each attempt: the signal may come while the save waits for a slot.
            nonlocal is_last
            is_last = self._must_end()
            return urgent or is_last

        is_debugging = self._engine_options.is_debugging
        watch = Watch(step, encoder.entries) if is_debugging else None

        def begin(engine: Engine) -> SaveHandle:
            return engine.save(
                step, encoder.entries, metadata, note, until, is_urgent, watch, guard, overlap
            )

        handle = self._begin(begin, lambda: capacity_for(encoder.entries, metadata, room()))
        self._room.used(handle._byte_count)
        handle.wait_as_asked(overlap)
        blocked = time.perf_counter_ns() - self._save_began
        self._blocked_nanoseconds += blocked
        self._copied_byte_count += handle.copied_byte_count
        handle.blocked_seconds = blocked / 1e9
        if self._policy is not None:
            self._policy.began(step, handle)
        if is_last:
            self._end_with(handle)
        else:
            self._keeper.saved(handle, user_metadata)
        return handle

    def _must_end(self) -> bool:
        """Whether a save that begins now is the last one, because SIGTERM came."""
        return self._preemption is not None and self._preemption.is_pending

    def _end_with(self, handle: SaveHandle) -> None:
        """Waits until the last state is durable, and ends as it was asked for."""
        assert self._preemption is not None
        self._keeper.hurry()
        self._preemption.finish(handle)

    def should_stop(self) -> bool:
        """True once SIGTERM came; see ``on_sigterm``.

        A loop that does not save in every step, or that continues after the last save, asks this
        at the end of every step.
        """
        return self._preemption is not None and self._preemption.was_received

    def _follow(self, policy: Policy) -> None:
        """Saves by this policy from here on."""
        self._policy = policy
        policy.bind(self._path, self._file_options.in_flight_count)

    def is_due(self, step: int) -> bool:
        """Whether the policy wants this step to be saved.

        Ask once a step, as ``maybe_save`` does: the policy times the training by the questions.
        """
        self._check_open()
        if self._preemption is not None and self._preemption.is_pending:
            return True
        if self._policy is None:
            raise InvalidArgument(
                "there is no policy to ask; give one, such as Checkpointer(…, policy=10) or "
                "policy=pccheck.policies.Auto()"
            )
        return self._policy.is_due(step_number(step))

    def _pinning(self, pin: bool | str | Pin | None) -> Pin | None:
        """The callable that pins the pool, if it is to be pinned."""
        if pin is None or pin is False:
            return None
        if callable(pin):
            return pin
        raise InvalidArgument(
            f"pin is {pin!r}; give a callable, or use pccheck.torch, which can pin for CUDA"
        )

    def rewind(self, step: int) -> None:
        """Accepts ``step`` and later ones again, because training went back on purpose."""
        self._check_open()
        with self._open_lock:
            if self._engine is not None:
                self._engine.rewind(step_number(step))

    def wait_staged(self) -> None:
        """Returns when no checkpoint reads the caller's memory any more."""
        if self._engine is not None:
            self._engine.wait_staged()

    # -- loading

    def steps(self) -> list[int]:
        """The steps that can be loaded, newest checkpoint first."""
        return [info.step for info in self.checkpoints()]

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints that can be loaded, in the order in which ``resume`` tries them."""
        self._check_open()
        if self._engine is None:
            return []
        with Reader(self._path, self._fingerprint) as reader:
            return reader.list()

    @property
    def loaded(self) -> CheckpointInfo | None:
        """The checkpoint that the last ``load`` or ``resume`` returned."""
        return self._loaded

    def load(self, step: int | None = None, *, into: Any = None) -> Any:
        """Returns the state of a step, or the newest intact one; every byte is verified.

        ``into`` is a nest like the one that was saved. The load fills a tensor or array in place
        when it has the same key, type and shape, is dense, and is in this process's memory; it is
        then part of the result. The load leaves the others alone, and allocates what was stored.
        When a load fails, the memory that it was filling holds unspecified values; the error
        reports that.

        The load waits until the saves of this checkpointer have ended. The writer returns to the
        step that was loaded, which may be saved again. Raises ``NoCheckpoint`` when there is no
        checkpoint, ``Corrupt`` when the requested step is damaged.
        """
        return self._load(step, loading_of(self._memory, into))

    def _load(self, step: int | None, loading: Loading) -> Any:
        self._check_open()
        if self._engine is None:
            raise NoCheckpoint(f"{self._path}: nothing has been saved yet")
        # What is filled in place may still be the source of a save of another checkpointer.
        wait_staged_everywhere()
        # What this one has in flight is newer than all that the file holds.
        self._engine.wait_finished()
        with Reader(self._path, self._fingerprint) as reader:
            info, state = load_from(
                self._path, reader, step, loading, sequence_maximum=self._chosen_sequence(step)
            )
        self._loaded = info
        self.rewind(info.step)
        return state

    def _chosen_sequence(self, step: int | None) -> int:
        """The checkpoint that opening chose, which binds the loads before the first save: what it
        rejected stays rejected. 0 where anything may be loaded."""
        if step is not None or self._save_began or self._engine is None:
            return 0
        with self._open_lock:
            chosen = self._engine.recovered()
        return 0 if chosen is None else chosen.sequence

    @property
    def resume_report(self) -> ResumeReport | None:
        """How the checkpoint of the last ``resume`` fitted the live state."""
        return self._resume_report

    def _resume_state(
        self, loading: Loading, step: int | None = None
    ) -> tuple[int, Any] | None:
        """The next step and the newest intact state; None when nothing was ever saved."""
        self._check_open()
        self._resume_report = None
        if self._engine is None and step is None:
            return None
        try:
            state = self._load(step, loading)
        except NoCheckpoint:
            if step is not None:
                raise
            damaged = damaged_slots(self._path, self._fingerprint)
            if damaged:
                raise NoCheckpoint(
                    f"{self._path}: no checkpoint can be loaded, but the file is not empty: "
                    + "; ".join(damaged)
                    + ". Run pcfsck, or start over with another file"
                ) from None
            return None
        except StateMismatch as mismatch:
            self._resume_report = mismatch.report
            raise
        self._resume_report = loading.report
        if loading.report is not None and not loading.report.is_exact:
            log.warning("%s", loading.report)
        assert self._loaded is not None
        log.info("%s", described(self._path, "resumed", self._loaded, loading))
        return self._loaded.step + 1, state

    # -- the rest

    def stats(self) -> dict[str, Any]:
        """What was counted: bytes, stalls, device time, flushes, a line per checkpoint.

        ``blocked_nanoseconds`` is how long ``save`` blocked its callers, and
        ``staged_wait_nanoseconds`` how long optimizers and others waited for *staged* besides
        that. ``copied_byte_count`` is what ``save`` copied outside of the pool. With a policy that
        chooses its interval, ``interval_steps`` is that choice. Empty until the file exists.
        """
        self._check_open()
        if self._engine is None:
            return {}
        with self._open_lock:
            stats = self._engine.stats()
        stats["blocked_nanoseconds"] = self._blocked_nanoseconds
        stats["copied_byte_count"] = self._copied_byte_count
        stats["staged_wait_nanoseconds"] = self._engine.staged_wait_nanoseconds
        if isinstance(self._policy, Auto) and self._policy.choice is not None:
            stats["interval_steps"] = self._policy.choice.interval
        return stats

    def close(self) -> None:
        """Waits until the last checkpoint is durable and closes the file."""
        is_child = self._process != os.getpid()
        if is_child:
            self._adopt()
        with self._open_lock:
            self._is_closed = True
        try:
            self._close_engine()
        finally:
            self._keeper.close()
        preemption, self._preemption = self._preemption, None
        if preemption is not None:
            preemption.close()
        file, self._file = self._file, None
        if file is not None and not is_child:
            file.check()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise open_files.no_pickle(self, self._path)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._engine else "not created yet"
        return f"<{type(self).__module__}.{type(self).__name__} {self._path!r} {state}>"


class Checkpointer(BaseCheckpointer):
    """Checkpoints of plain state: nests of dict, list, tuple, scalars, and NumPy arrays.

    ``save`` returns when the state is *staged*, because nothing notices an array that changes
    before that. With ``overlap=True`` you promise that none does, and ``save`` returns at once:
    call ``wait_staged()`` on the handle, or on the checkpointer, before you change them.
    """

    def save(
        self,
        step: int,
        state: Any,
        *,
        metadata: str | Mapping[str, Any] | None = None,
        urgent: bool = False,
        overlap: bool = False,
    ) -> SaveHandle:
        """Begins a checkpoint of ``state`` and returns once it is staged.

        ``metadata`` is a short note kept in the slot header: a text, or values by name such as
        ``{"loss": 0.5}``, stored as JSON. With ``urgent`` the engine copies and writes it before
        everything else in flight, once it has a slot. Raises ``TypeError`` with the key of what
        cannot be stored, ``TooLarge``, ``StepBackwards``, ``Busy``, ``Closed``.
        """
        save_options({}, metadata, urgent=urgent, overlap=overlap)
        self._begin_save()
        encoder = Encoder()
        document = encoder.encode_text(state)
        return self._save_state(step, encoder, document, metadata, urgent, overlap=overlap or None)

    def maybe_save(self, step: int, state: Any, **options: Any) -> SaveHandle | None:
        """Saves when the policy asks for it; call it at the end of every step."""
        return self.save(step, state, **options) if self.is_due(step) else None

    def resume(self, *, step: int | None = None) -> tuple[int, Any]:
        """Returns the next step and the newest intact state; ``(0, None)`` for a new file.

        ``step`` resumes from one checkpoint in particular; ``NoCheckpoint`` when the file does not
        hold it any more.
        """
        return self._resume_state(Loading(self._memory), step) or (0, None)


def load(path: str | os.PathLike[str], step: int | None = None, *, into: Any = None) -> Any:
    """The state in a file that may be open elsewhere for writing; takes no writer lock.

    ``into`` is a nest like the one that was saved, whose arrays are filled in place where they
    fit: see ``Checkpointer.load``.
    """
    return load_with(ArrayMemory(), path, step, into)


def load_tensor(
    path: str | os.PathLike[str],
    name: str,
    step: int | None = None,
    *,
    into: Any = None,
) -> Any:
    """One tensor by its name, such as ``model.layers.0.weight``; reads only its chunks.

    The array ``into`` is filled and returned when it has the stored type and shape; else a new
    array is returned. Raises ``CheckpointError`` when there is no tensor of that name.
    """
    return load_with(ArrayMemory(), path, step, into, name)


def checkpoints(path: str | os.PathLike[str]) -> list[CheckpointInfo]:
    """The checkpoints in a file that may be open elsewhere for writing."""
    with Reader(path) as reader:
        return reader.list()


def report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What recovery reports of a file: its geometry, and why each slot is usable or not."""
    with Reader(path) as reader:
        return reader.report()
