"""Checkpoint files as storage of ``torch.distributed.checkpoint``.

    writer = pccheck.dcp.StorageWriter("run/", in_flight=2)
    dcp.save(state, checkpoint_id=step, storage_writer=writer)
    dcp.load(state, storage_reader=pccheck.dcp.StorageReader("run/"))

The checkpoint id is the step. The path is a folder, in which each process has a file of its own; a
load may have another number of them. One process may also name a file, such as ``"run.pcc"``. What
``dcp.save`` returns from, and the future of ``dcp.async_save`` completes with, is *durable on all
ranks*.

The files of a folder are those of a group, as ``pccheck.distributed`` writes them: a save that
fails on one rank is void on all of them, and costs no older checkpoint; spec/GROUP.md.

DCP pickles what is no tensor. PCcheck stores those bytes as they are, and reads them back with
torch's reader for weights only, unless ``StorageReader(trust=True)`` says that the writer of the
file is trusted.

What the ranks must agree on in a save or a load travels in the plans that DCP gathers and scatters
anyway, so that whatever fails on one rank fails on all, with its rank named. A reader talks to no
other process, a writer where a group does: when its first save begins, and after each save.
"""

from __future__ import annotations

import datetime
import io
import logging
import os
import threading
import uuid
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
)
from torch.futures import Future

from ._core.engine import wait_staged_everywhere
from ._core.handle import SaveHandle
from ._dcp.files import Files
from ._dcp.places import is_folder_of, refuse_options, refuse_rank_in
from ._dcp.search import UNUSABLE, Name, Search, candidates_at, name_of, shown_name
from ._dcp.writing import (
    DurableCheckpointer,
    FileCheckpointer,
    GroupCheckpointer,
    Part,
    check_completeness,
    sent_checkpointer,
)
from ._group.handle import GroupHandle
from ._group.transport import LocalTransport
from ._state import unpickling
from ._state.unpickling import BadPickle, Trust
from .errors import CheckpointError, Corrupt, FileMissing, InvalidArgument, NotTrusted

__all__ = ["NotTrusted", "StorageReader", "StorageWriter"]

log = logging.getLogger("pccheck")

# How the threads are called in which ``dcp.async_save`` saves.
_DCP_THREAD = "AsyncCheckpointExecutor"
# Classes of values that DCP pickles, besides those that weights are made of: none runs anything.
_PLAIN_CLASSES = (
    io.BytesIO, frozenset, range, slice, datetime.date, datetime.datetime, datetime.time,
    datetime.timedelta, datetime.timezone,
)  # fmt: skip


@dataclass(frozen=True)
class _Save:
    """What the ranks of a save agree on; it travels in their plans."""

    step: int
    #: Tells this save from one of the same step that a restarted job made.
    save_id: str | None = None
    #: The saves that this rank, or any of them, has begun and others may have missed.
    open_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Choice:
    """The checkpoint that a rank can load, or that all ranks are to load."""

    name: Name
    save_id: str | None
    #: Why this rank passed over newer ones.
    passed_over: tuple[tuple[Name, str], ...] = ()
    #: How many processes load; 0 as long as nobody has counted them.
    process_count: int = 0


class _ThisSave(threading.local):
    """DCP runs a save in one thread from beginning to end, and several at the same time."""

    #: What ``reset`` was given; an error when it was no step.
    requested: int | Exception | None = None
    step: int | None = None
    #: The step, when this rank planned it before and did not come to write it.
    missed: tuple[int, ...] = ()
    handle: SaveHandle | None = None


class StorageWriter(storage.StorageWriter):
    """Writes the checkpoints of a run into a folder, or a file. Make one for the run."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        process_group: Any = None,
        no_dist: bool = False,
        **options: Any,
    ) -> None:
        """Several processes need a folder. One process may have one, which ends in a slash or
        exists already, or a file.

        ``options`` are those of ``pccheck.distributed.Checkpointer`` for a folder, such as
        ``timeout``, and of ``pccheck.torch.Checkpointer`` for a file. Raises ``InvalidArgument``
        for those that leave a save out, or choose when to save: that is what DCP does.

        ``process_group`` and ``no_dist`` are what ``dcp.save`` will be given. With ``no_dist`` each
        process of a job saves for itself, and gives its own path.

        The file of a process is made by the first save, which sizes it unless ``capacity`` is
        given. Steps grow. When training goes back, call ``checkpointer.rewind(step)``, in a folder
        on all ranks; a new writer may begin with any step.
        """
        self._prepare(os.fspath(path), process_group, no_dist, options)
        if self._is_folder:
            # All ranks make their writers in one order, and may fail in their first saves.
            self._opened()

    def _prepare(self, path: str, group: Any, no_dist: bool, options: dict[str, Any]) -> None:
        """Judges path and options where they are given, not at the first save."""
        self._path, self._group, self._no_dist, self._options = path, group, no_dist, options
        self._lock = threading.Lock()
        self._checkpointer: DurableCheckpointer | None = None
        self._this = _ThisSave()
        self._planned_step: int | None = None
        # True in a process that DCP has sent this writer to.
        self._is_sent = False
        refuse_rank_in(path)
        self._rank, self._count = (0, 1) if no_dist else _rank_and_count(group)
        self._is_folder = is_folder_of(path, self._count)
        refuse_options(options, self._is_folder)

    def reset(self, checkpoint_id: Any = None) -> None:
        """The next save of this thread is of this step."""
        self._wait_for_saves_before()
        # An error is kept for the save itself, in which all ranks hear of it.
        self._this.requested = None if checkpoint_id is None else _step_or_error(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Opens this rank's file, or leaves it to the first save to make one."""
        requested, self._this.requested, self._this.step = self._this.requested, None, None
        if requested is None:
            raise InvalidArgument(
                "dcp.save was given no checkpoint_id; give it the step, which is a number"
            )
        if isinstance(requested, Exception):
            raise requested
        if not kwargs.get("use_collectives", True):
            raise InvalidArgument(
                "dcp.save was given use_collectives=False, with which no rank knows what the "
                "others save; leave it out"
            )
        if kwargs.get("rank", self._rank) != self._rank:
            raise self._other_processes(f"as rank {kwargs['rank']}", f"rank {self._rank}")
        self._opened()
        self._this.step = requested

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan, with the step that this rank saves."""
        step = self._this.step
        assert step is not None
        self._this.missed = (step,) if step == self._planned_step else ()
        self._planned_step = step
        open_steps = tuple(self._opened().open_steps)
        return replace(plan, storage_data=_Save(step, None, open_steps))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans, with what distinguishes this save from others.

        Raises what makes the save one that could not be loaded, before anything is written.
        """
        if len(plans) != self._count:
            raise self._other_processes(f"by {len(plans)} of them", f"{self._count}")
        step = self._this.step
        open_steps: set[int] = set()
        for rank, plan in enumerate(plans):
            if not isinstance(plan.storage_data, _Save):
                continue
            open_steps.update(plan.storage_data.open_steps)
            if plan.storage_data.step != step:
                raise InvalidArgument(
                    f"rank {rank} saves step {plan.storage_data.step}, the coordinator step "
                    f"{step}; give all ranks one checkpoint_id, and wait for the future of a save "
                    "before the next one begins"
                )
        # A plan that DCP has cached is not sent again.
        if all(plan.usable for plan in plans):
            check_completeness(plans)
        assert step is not None
        save = _Save(step, uuid.uuid4().hex, tuple(sorted(open_steps)))
        return [replace(plan, storage_data=save) for plan in plans]

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> Future[list[storage.WriteResult]]:
        """Saves this rank's part; it is durable when this returns."""
        step, save = self._this.step, plan.storage_data
        assert step is not None
        self._planned_step = None
        # What a planner keeps from an earlier save says nothing of this one, nor which saves others
        # have begun: this step may be one of them.
        if getattr(planner, "_enable_plan_caching", False) or not isinstance(save, _Save):
            save = _Save(step, None, self._this.missed)
        results: list[storage.WriteResult] = []

        def make() -> Part:
            if save.step != step:
                raise InvalidArgument(
                    f"this rank saves step {step}, but was sent the plan of step {save.step}; wait "
                    "for the future of a save before the next one begins"
                )
            part = Part(plan, planner, self._count, save.save_id)
            results.extend(part.results)
            return part

        checkpointer = self._opened()
        checkpointer.catch_up(save.open_steps)
        self._this.handle = checkpointer.save_durably(step, make)
        future: Future[list[storage.WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[storage.WriteResult]]) -> None:
        """Every part is durable; returns when the group knows it, too."""
        handle, self._this.handle = self._this.handle, None
        if isinstance(handle, GroupHandle):
            handle.wait_group()

    def storage_meta(self) -> StorageMeta:
        """The step, for planners that want to know."""
        step = self._this.requested
        return StorageMeta(checkpoint_id=str(step) if isinstance(step, int) else None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """True for a step."""
        return _is_step(checkpoint_id)

    @property
    def checkpointer(self) -> DurableCheckpointer:
        """What writes the file of this process: for ``stats()``, ``rewind()``, metrics."""
        return self._opened()

    def close(self) -> None:
        """Closes the file. In a folder all ranks call it, and it waits for them a while."""
        if self._checkpointer is not None:
            self._checkpointer.close()

    def __enter__(self) -> StorageWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._checkpointer is not None:
            self._checkpointer.__exit__(kind, error, trace)

    # -- in the process that AsyncCheckpointerType.PROCESS saves in

    def __getstate__(self) -> dict[str, Any]:
        if self._checkpointer is not None and self._checkpointer.is_open:
            raise InvalidArgument(
                f"{self._checkpointer.path} is open in this process, so another one, in which "
                "AsyncCheckpointerType.PROCESS saves, finds it locked; close() this writer and "
                "make a new one, or save with AsyncCheckpointerType.THREAD"
            )
        # The other process knows the group that was given as all there is.
        return {"path": self._path, "no_dist": self._no_dist, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(state["path"], None, state["no_dist"], state["options"])
        self._is_sent = True

    # -- the rest

    @staticmethod
    def _wait_for_saves_before() -> None:
        """Saves of ``dcp.async_save`` that overlap are made one after the other.

        The ranks talk to each other several times in a save, and would else answer each other's
        questions about different ones.
        """
        this = threading.current_thread()
        # Threads are listed in the order in which they were started, which is the same on all
        # ranks; one of DCP's makes one save, and ends with it.
        for thread in threading.enumerate():
            if thread is this and this.name.startswith(_DCP_THREAD):
                break
            if thread is not this and thread.ident and thread.name.startswith(_DCP_THREAD):
                thread.join()

    def _opened(self) -> DurableCheckpointer:
        with self._lock:
            if self._checkpointer is None:
                if self._is_sent:
                    self._checkpointer = sent_checkpointer(self._path, self._make, self._options)
                else:
                    self._checkpointer = self._make()
            return self._checkpointer

    def _make(self) -> DurableCheckpointer:
        if not self._is_folder:
            return FileCheckpointer(self._path, **self._options)
        transport = LocalTransport() if self._no_dist else None
        return GroupCheckpointer(
            self._path, group=self._group, transport=transport, **self._options
        )

    def _other_processes(self, found: str, expected: str) -> InvalidArgument:
        return InvalidArgument(
            f"dcp.save saves {found}, but this writer is for {expected} of "
            f"{self._count} processes; give the process_group or no_dist of dcp.save to "
            "StorageWriter, too"
        )


class StorageReader(storage.StorageReader):
    """Reads the newest checkpoint that is durable on all ranks, or that of a step."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        step: int | None = None,
        *,
        verify: bool = True,
        trust: bool = False,
    ) -> None:
        """``path`` is the folder of a run, which any number of ranks wrote, or one file.

        ``step`` is that of every load that is given no ``checkpoint_id``; None is the newest. A
        step that two attempts saved is that of the newer one.

        Every byte is verified before it is used. When one process loads, damage costs a warning,
        and the next older checkpoint is taken. When several do, each reads its part in advance
        with ``verify``, so that damage costs all of them that step; without, it ends the load
        with an error.

        Objects that are no tensors were pickled by DCP. With ``trust`` they are unpickled as they
        are, which runs what the writer of the file chose; without, only tensors, plain values, and
        NumPy arrays and numbers are, and anything else is ``NotTrusted``.
        """
        self._path = os.fspath(path)
        refuse_rank_in(self._path)
        self._default_step = step
        self._requested: int | Exception | None = None
        self._verify = verify
        self._trust = Trust(trust, "give StorageReader(trust=True)")
        self._search: Search | None = None
        self._files: Files | None = None
        #: The step that was loaded.
        self.step: int | None = None

    def steps(self) -> list[int]:
        """The steps that may be loaded, best first; none where nothing has been saved yet.

        Raises ``NoCheckpoint`` when a checkpoint that was durable on all ranks is missing.
        """
        try:
            return [candidate.step for candidate in candidates_at(self._path)]
        except FileMissing:
            return []

    def reset(self, checkpoint_id: Any = None) -> None:
        """The next load is of this step."""
        self.close()
        # An error is kept for the load itself, in which all ranks hear of it.
        self._requested = None if checkpoint_id is None else _step_or_error(checkpoint_id)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What the files of all ranks record of the checkpoint that is to be loaded.

        Raises ``NoCheckpoint``, ``Corrupt``.
        """
        self.close()
        requested, self._requested = self._requested, None
        if isinstance(requested, Exception):
            raise requested
        self._search = Search(self._path, self._default_step if requested is None else requested)
        self._files = self._search.next()
        return self._files.metadata()

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any
    ) -> None:
        """Nothing is left to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan, with the step that this rank can load."""
        assert self._files is not None and self._search is not None
        while self._verify and _rank_and_count()[1] > 1:
            try:
                self._files.check(plan.items)
                break
            except UNUSABLE as error:
                self._fall_back(error)
        passed_over = tuple(self._search.passed_over.items())
        choice = _Choice(name_of(self._files.candidate), self._files.save_id, passed_over)
        return replace(plan, storage_data=choice)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans, with the newest checkpoint that every rank can load."""
        assert self._search is not None
        names = self._search.names
        oldest, reasons = 0, []
        for rank, plan in enumerate(plans):
            choice = plan.storage_data
            if not isinstance(choice, _Choice):
                raise CheckpointError(
                    f"the planner of rank {rank} has dropped storage_data from its plan, so that "
                    "the ranks cannot agree on a step; keep it (dataclasses.replace)"
                )
            if choice.name not in names:
                raise CheckpointError(
                    f"rank {rank} finds {shown_name(choice.name)} to load, the coordinator has "
                    f"{', '.join(map(shown_name, names))}; give all ranks the same files and "
                    "checkpoint_id, and load when nobody writes them"
                )
            oldest = max(oldest, names.index(choice.name))
            reasons += [(name, f"rank {rank}: {why}") for name, why in choice.passed_over]
        ids = {p.storage_data.save_id for p in plans if p.storage_data.name == names[oldest]}
        agreed = _Choice(names[oldest], next(iter(ids)), tuple(reasons), len(plans))
        return [replace(plan, storage_data=agreed) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan asks for and no more; each byte is verified before it is used."""
        assert self._files is not None
        # What is filled in place may still be the source of a save.
        wait_staged_everywhere()
        agreed = plan.storage_data
        if not isinstance(agreed, _Choice):
            # Without what was agreed on there is nothing to follow, and nobody to leave behind.
            count = _rank_and_count()[1]
            name = name_of(self._files.candidate)
            agreed = _Choice(name, self._files.save_id, (), count)
        try:
            self._follow(agreed)
            self._load(plan, planner, agreed.process_count == 1)
            self.step = self._files.step
        finally:
            self.close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """True for a step."""
        return _is_step(checkpoint_id)

    def close(self) -> None:
        """Unpins what a load that failed elsewhere has left open."""
        if self._files is not None:
            self._files.close()
        self._files = None

    # -- choosing

    def _fall_back(self, failure: Exception) -> None:
        """Opens the next older checkpoint; a plan was made for what the present one holds."""
        assert self._files is not None and self._search is not None
        old, entries = self._files.step, self._files.entries
        self._files.close()
        self._search.pass_over(self._files.candidate, str(failure))
        self._files = self._search.next()
        if self._files.entries != entries:
            raise Corrupt(
                f"step {old} cannot be used: {failure}; step {self._files.step} holds other "
                f"tensors or shards: load it with checkpoint_id={self._files.step}"
            )

    def _follow(self, agreed: _Choice) -> None:
        """Goes back to the step that every rank can load."""
        assert self._files is not None
        reasons = dict(agreed.passed_over)
        while (name := name_of(self._files.candidate)) != agreed.name:
            self._fall_back(CheckpointError(reasons.get(name, "another rank cannot use it")))
        if self._files.save_id != agreed.save_id:
            raise CheckpointError(
                f"this rank finds another save of {shown_name(agreed.name)} than other ranks do; "
                "give all ranks the same files, and load when nobody writes them"
            )

    # -- reading

    def _load(self, plan: LoadPlan, planner: LoadPlanner, may_fall_back: bool) -> None:
        objects = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        targets: list[torch.Tensor] | None = None
        while True:
            assert self._files is not None
            try:
                values = self._files.read_objects(objects)
                streams = [
                    self._stream(value, item.storage_index.fqn)
                    for item, value in zip(objects, values, strict=True)
                ]
                if targets is None:
                    # From here on the caller's tensors are changed.
                    targets = [planner.resolve_tensor(item).detach() for item in tensors]
                self._files.read_tensors(list(zip(tensors, targets, strict=True)))
                break
            except UNUSABLE as error:
                self._go_on(error, may_fall_back, targets is not None)
        for item, stream in zip(objects, streams, strict=True):
            planner.load_bytes(item, stream)
        for item, target in zip(tensors, targets, strict=True):
            planner.commit_tensor(item, target)

    def _go_on(self, failure: CheckpointError, may_fall_back: bool, is_changed: bool) -> None:
        """Loads an older checkpoint over the failed one, or reports what it left behind."""
        left = (
            "; the tensors that were to be filled hold unspecified values now: load another "
            "checkpoint into them, or initialize them again" if is_changed else ""
        )  # fmt: skip
        assert self._files is not None
        if not may_fall_back:
            raise type(failure)(
                f"step {self._files.step} cannot be loaded: {failure}; other processes load it at "
                f"the same time, so none goes back: give all of them an older checkpoint_id, or "
                f"StorageReader(verify=True){left}"
            )
        try:
            self._fall_back(failure)
        except CheckpointError as error:
            error.reword(f"{error}{left}")
            raise

    def _stream(self, value: bytes, fqn: str) -> io.BytesIO:
        """The bytes of an object for a planner, which unpickles whatever it is given."""
        if self._trust.is_given:
            return io.BytesIO(value)
        assert self._files is not None
        where = f"{self._path}: '{fqn}' of step {self._files.step}"
        try:
            plain = unpickling.load(
                io.BytesIO(value), where, self._trust, map_location=None, also=_PLAIN_CLASSES
            )
        except BadPickle as error:
            raise NotTrusted(
                f"{error}; expected what DCP's own planner saves. If you trust the writer, "
                f"{self._trust.how}"
            ) from None
        # Pickled again: what was checked and what the planner then reads are the same.
        stream = io.BytesIO()
        torch.save(plain, stream)
        stream.seek(0)
        return stream


def _rank_and_count(group: Any = None) -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise InvalidArgument("this process is not in the process_group of StorageWriter")
    return rank, dist.get_world_size(group)


def _is_step(checkpoint_id: Any) -> bool:
    if isinstance(checkpoint_id, bool):
        return False
    return isinstance(checkpoint_id, int) or str(checkpoint_id).isdecimal()


def _step_or_error(checkpoint_id: Any) -> int | Exception:
    if _is_step(checkpoint_id):
        return int(checkpoint_id)
    return InvalidArgument(
        f"checkpoint_id is {checkpoint_id!r}; a checkpoint in a file is named by its step, which "
        "is a number"
    )
