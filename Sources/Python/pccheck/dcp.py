"""A checkpoint file as storage of ``torch.distributed.checkpoint``.

    writer = pccheck.dcp.StorageWriter("run.pcc", in_flight=2)
    dcp.save(state, checkpoint_id=step, storage_writer=writer)
    dcp.load(state, storage_reader=pccheck.dcp.StorageReader("run.pcc"))

The checkpoint id is the step. In a job of several processes each has a file of its own, so the
path says where the rank goes: ``"rank{rank}.pcc"``; a load may have another number of them. What
``dcp.save`` returns from, and the future of ``dcp.async_save`` completes with, is *durable*.
DCP pickles what is no tensor, and unpickles it on load; PCcheck stores those bytes as they are.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.futures import Future

from . import torch as pcc
from ._engine import Outcome
from ._load import describe_damage, load_from
from ._loading import Loading
from ._reader import Reader
from ._torch_lazy import LazyMemory, LazyTensor
from .errors import Corrupt, InvalidArgument, NoCheckpoint, StateFormatError

__all__ = ["StorageReader", "StorageWriter"]

log = logging.getLogger("pccheck")

_RANK = "{rank}"
_LAYOUT_VERSION = 1


class StorageWriter(storage.StorageWriter):
    """Writes the checkpoints of a run, one file for each process. Make one for the whole run."""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        """``options`` are those of ``pccheck.torch.Checkpointer``.

        The file is made by the first save, which sizes it unless ``capacity`` is given. Raises
        ``InvalidArgument`` for ``on_busy="skip"``: a save that DCP asks for has to be one.
        """
        if options.get("on_busy") == "skip":
            raise InvalidArgument(
                "on_busy is 'skip', but a checkpoint that DCP saves is not left out; give 'wait' "
                "or 'fail'"
            )
        self._path = os.fspath(path)
        self._options = options
        self._checkpointer: _Checkpointer | None = None
        self._step: int | None = None
        # The path is judged where it was given, not at the first save.
        _path_of(self._path, *_rank_and_count())

    def reset(self, checkpoint_id: Any = None) -> None:
        """The next save is of this step."""
        self._step = None if checkpoint_id is None else _step_of(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Opens this rank's file, or leaves it to the first save to make one."""
        if self._step is None:
            raise InvalidArgument(
                "dcp.save was given no checkpoint_id; give it the step, which is a number"
            )
        if self._checkpointer is None:
            rank, count = _rank_and_count()
            path = _path_of(self._path, rank, count)
            self._checkpointer = _Checkpointer(
                path, **{"rank": rank, "world_size": count, **self._options}
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> Future[list[storage.WriteResult]]:
        """Saves this rank's part; it is durable when this returns."""
        assert self._checkpointer is not None and self._step is not None
        tensors: dict[str, torch.Tensor] = {}
        objects: dict[str, bytes] = {}
        items = []
        for item in plan.items:
            value = planner.resolve_data(item)
            key = _key(item)
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach()
            else:
                objects[key] = value.getvalue()
            items.append(_description(item, key))
        layout = {
            "version": _LAYOUT_VERSION, "items": items, "planner": plan.planner_data,
            "world_size": _rank_and_count()[1],
        }  # fmt: skip
        state = {"state": tensors, "objects": objects, "dcp": layout}
        self._checkpointer.save_durably(self._step, state, list(tensors.values()))
        results = [
            storage.WriteResult(item.index, _byte_count(tensors, objects, _key(item)), None)
            for item in plan.items
        ]
        future: Future[list[storage.WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[storage.WriteResult]]) -> None:
        """Nothing is left to do: every rank has stored its own part of the metadata."""

    def storage_meta(self) -> StorageMeta:
        """The step, for planners that want to know."""
        return StorageMeta(checkpoint_id=None if self._step is None else str(self._step))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """True for a step."""
        return _is_step(checkpoint_id)

    @property
    def checkpointer(self) -> pcc.Checkpointer | None:
        """What writes the file: for ``stats()``, ``rewind()``, metrics. None before a save."""
        return self._checkpointer

    def close(self) -> None:
        """Closes the file."""
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
        self.close()


class StorageReader(storage.StorageReader):
    """Reads the newest checkpoint that every file holds whole, or that of a step."""

    def __init__(
        self, path: str | os.PathLike[str], step: int | None = None, *, verify: bool = True
    ) -> None:
        """``step`` is that of every load that is given no ``checkpoint_id``; None is the newest.

        With ``verify`` a checkpoint is read in full, each process its share of the files, before
        anything of it is loaded, so that a damaged one costs a warning and the next older one is
        taken. Without, one that is damaged ends the load with an error when the damage is met.
        """
        self._path = os.fspath(path)
        self._default_step = step
        self._wanted = step
        self._verify = verify
        self._files: list[_File] = []
        self._places: dict[_Index, tuple[_File, str]] = {}
        #: The step that was loaded.
        self.step: int | None = None

    def reset(self, checkpoint_id: Any = None) -> None:
        """The next load is of this step."""
        self._close()
        self._wanted = self._default_step if checkpoint_id is None else _step_of(checkpoint_id)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What the files of all ranks say of the checkpoint that is to be loaded.

        Raises ``NoCheckpoint``, ``Corrupt``.
        """
        self._close()
        self._files = self._opened()
        tensors: dict[str, TensorStorageMetadata] = {}
        objects: dict[str, BytesStorageMetadata] = {}
        planner: dict[str, Any] = {}
        for file in self._files:
            layout = file.layout
            planner.update(layout["planner"] or {})
            for item in layout["items"]:
                index = _Index(item["fqn"], tuple(item.get("offsets", ())))
                if index in self._places:
                    continue
                self._places[index] = (file, item["key"])
                if "size" not in item:
                    objects[index.fqn] = BytesStorageMetadata()
                    continue
                known = tensors.setdefault(
                    index.fqn,
                    TensorStorageMetadata(_properties(file, item), torch.Size(item["size"]), []),
                )
                known.chunks.append(
                    ChunkStorageMetadata(torch.Size(index.offsets), torch.Size(item["sizes"]))
                )
        return Metadata(
            {**tensors, **objects}, planner or None,
            storage_meta=StorageMeta(checkpoint_id=str(self.step)),
        )  # fmt: skip

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any
    ) -> None:
        """Nothing is left to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan asks for and no more; each byte is verified before it is used."""
        try:
            for item in plan.items:
                index = item.storage_index
                file, key = self._places[_Index(index.fqn, tuple(index.offset or ()))]
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, io.BytesIO(file.objects[key]))
                    continue
                target = planner.resolve_tensor(item).detach()
                _read(file.tensors[key], item, target)
                planner.commit_tensor(item, target)
        finally:
            self._close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """True for a step."""
        return _is_step(checkpoint_id)

    # -- choosing

    def _opened(self) -> list[_File]:
        """The files of all ranks, at the step to be loaded."""
        paths = list(self._paths())
        held = [_steps(path) for path in paths]
        common = [step for step in held[0] if all(step in steps for steps in held)]
        if self._wanted is not None:
            common = [step for step in common if step == self._wanted]
        for number, step in enumerate(common):
            failure = self._failure(paths, step)
            if failure is None:
                self.step = step
                return [_File(path, step) for path in paths]
            if self._wanted is not None:
                raise Corrupt(f"step {step} cannot be loaded: {failure}")
            older = f"trying step {common[number + 1]}" if number + 1 < len(common) else (
                "no older one is left")  # fmt: skip
            log.warning(
                "%s: the checkpoint of step %d cannot be used: %s; %s",
                self._path, step, failure, older,
            )  # fmt: skip
        wanted = "no step" if self._wanted is None else f"step {self._wanted}"
        found = "; ".join(
            f"{path}: {', '.join(map(str, steps)) or 'none'}"
            for path, steps in zip(paths, held, strict=True)
        )
        missing = "" if self._wanted is None else " not"
        if common:
            raise Corrupt(f"{self._path}: every checkpoint is damaged ({found}); run pcfsck")
        raise NoCheckpoint(f"{wanted} is{missing} in the files of all ranks ({found})")

    def _paths(self) -> Iterator[str]:
        """As many files as ranks saved, whatever their number is now."""
        first = _path_of(self._path, 0, 1)
        yield first
        if _RANK not in self._path:
            return
        with Reader(first) as reader:
            count = reader.report().get("world_size", 1)
        for rank in range(1, count):
            yield self._path.replace(_RANK, str(rank))

    def _failure(self, paths: list[str], step: int) -> str | None:
        """Why a step cannot be used; this process verifies its share, and all agree."""
        rank, count = _rank_and_count()
        failure = None
        try:
            for path in paths[rank::count] if self._verify else ():
                with Reader(path) as reader:
                    reader.select_newest(step)
                    reader.verify()
        except (Corrupt, NoCheckpoint) as error:
            failure = str(error)
        if count == 1:
            return failure
        failures: list[str | None] = [None] * count
        dist.all_gather_object(failures, failure)
        return next((text for text in failures if text is not None), None)

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []
        self._places = {}


class _Checkpointer(pcc.Checkpointer):
    """Saves while the caller waits, so that nothing has to be copied first."""

    def save_durably(
        self, step: int, state: dict[str, Any], tensors: list[torch.Tensor]
    ) -> Outcome:
        """Returns when the checkpoint is durable; reads dense tensors of the CPU in place."""
        self._begin_save()
        in_place = {
            tensor.untyped_storage().data_ptr() for tensor in tensors
            if tensor.is_cpu and tensor.layout == torch.strided
        }  # fmt: skip
        return self._save_parts(step, state, in_place).wait()


@dataclass(frozen=True)
class _Index:
    """A tensor, or the part of one that begins at these offsets, or an object."""

    fqn: str
    offsets: tuple[int, ...]


class _File:
    """One rank's file at one step, pinned while it is open."""

    def __init__(self, path: str, step: int) -> None:
        self._reader = Reader(path)
        _, state = load_from(path, self._reader, step, Loading(LazyMemory(self._reader, None)))
        if not isinstance(state, dict) or "dcp" not in state:
            self.close()
            raise StateFormatError(
                f"{path}: step {step} was not saved by torch.distributed.checkpoint; load it with "
                "pccheck.torch"
            )
        self.layout = state["dcp"]
        if self.layout["version"] != _LAYOUT_VERSION:
            self.close()
            raise StateFormatError(
                f"{path}: step {step} has version {self.layout['version']} of the DCP layout, this "
                f"package reads {_LAYOUT_VERSION}: install a newer pccheck"
            )
        self.tensors: dict[str, LazyTensor | torch.Tensor] = state["state"]
        self.objects: dict[str, bytes] = state["objects"]

    def close(self) -> None:
        self._reader.close()


def _read(source: LazyTensor | torch.Tensor, item: ReadItem, target: torch.Tensor) -> None:
    """Fills the target with the part that is asked for."""
    if tuple(item.lengths) == tuple(source.shape):
        if isinstance(source, LazyTensor):
            source.load(target)
        else:
            target.copy_(source)
        return
    offsets, lengths = list(item.storage_offsets), list(item.lengths)
    # Rows are what can be read alone.
    part = source[offsets[0] : offsets[0] + lengths[0]]
    for dimension in range(1, len(lengths)):
        part = part.narrow(dimension, offsets[dimension], lengths[dimension])
    target.copy_(part)


def _key(item: WriteItem) -> str:
    """The name under which an item is stored; parts of a tensor are told apart by their place."""
    if item.type != WriteItemType.SHARD or item.tensor_data is None:
        return item.index.fqn
    return f"{item.index.fqn}[{','.join(map(str, item.tensor_data.chunk.offsets))}]"


def _description(item: WriteItem, key: str) -> dict[str, Any]:
    """What a reader must know of an item beside its value."""
    known: dict[str, Any] = {"fqn": item.index.fqn, "key": key}
    if item.tensor_data is not None:
        data = item.tensor_data
        known |= {
            "size": list(data.size), "offsets": list(data.chunk.offsets),
            "sizes": list(data.chunk.sizes), "requires_grad": data.properties.requires_grad,
        }  # fmt: skip
    return known


def _properties(file: _File, item: dict[str, Any]) -> TensorProperties:
    return TensorProperties(
        dtype=file.tensors[item["key"]].dtype, requires_grad=item["requires_grad"]
    )


def _byte_count(
    tensors: dict[str, torch.Tensor], objects: dict[str, bytes], key: str
) -> int:
    return len(objects[key]) if key in objects else tensors[key].nbytes


def _steps(path: str) -> list[int]:
    """The steps of a file, newest checkpoint first; damage is told in the log."""
    with Reader(path) as reader:
        for damage in describe_damage(reader.report()):
            log.warning("%s: %s; run pcfsck to see more", path, damage)
        return [info.step for info in reader.list()]


def _rank_and_count() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _path_of(path: str, rank: int, count: int) -> str:
    """A rank's file."""
    if count > 1 and _RANK not in path:
        raise InvalidArgument(
            f"{path} would be the file of {count} processes; each needs one of its own: write "
            f"{_RANK} where the rank belongs, such as 'rank{_RANK}.pcc'"
        )
    return path.replace(_RANK, str(rank))


def _is_step(checkpoint_id: Any) -> bool:
    return isinstance(checkpoint_id, int) or str(checkpoint_id).isdecimal()


def _step_of(checkpoint_id: Any) -> int:
    if not _is_step(checkpoint_id):
        raise InvalidArgument(
            f"checkpoint_id is {checkpoint_id!r}; a checkpoint in a file is named by its step, "
            "which is a number"
        )
    return int(checkpoint_id)
