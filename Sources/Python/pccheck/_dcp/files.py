"""Which checkpoint of ``pccheck.dcp`` is loaded, and what the files of all ranks hold of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from .._core.damage import describe_damage
from .._core.reader import Reader
from .._torch.loading.pieces import Piece, pieces_of
from ..errors import (
    Busy,
    Corrupt,
    DeviceError,
    FileMissing,
    InvalidArgument,
    NoCheckpoint,
    StateFormatError,
)
from .reading import Entry, Index, Source

log = logging.getLogger("pccheck")

RANK = "{rank}"
#: What costs a checkpoint, but not the load: an older one is taken.
UNUSABLE = (Busy, Corrupt, DeviceError, NoCheckpoint, StateFormatError)


class Search:
    """The steps that every file holds, newest first, and why some of them cannot be used."""

    def __init__(self, path: str, wanted: int | None) -> None:
        """Raises ``NoCheckpoint`` when there is none; ``wanted`` is the requested step, or None."""
        self._path = path
        self._wanted = wanted
        self._paths = _paths(path)
        self._held = [_steps(path) for path in self._paths]
        first, *others = self._held
        common = [
            step for step in dict.fromkeys(first) if all(step in steps for steps in others)
        ]
        #: What may be loaded, in the order in which it is tried.
        self.steps = common if wanted is None else [step for step in common if step == wanted]
        self.passed_over: dict[int, str] = {}
        if not self.steps:
            asked = "no step is" if wanted is None else f"step {wanted} is not"
            raise NoCheckpoint(f"{asked} in the files of all ranks ({self._found})")

    @property
    def _found(self) -> str:
        return "; ".join(
            f"{path}: {', '.join(map(str, steps)) or 'none'}"
            for path, steps in zip(self._paths, self._held, strict=True)
        )

    def next(self) -> Files:
        """Opens the newest step that was not passed over; raises when none is left."""
        for step in self.steps:
            if step in self.passed_over:
                continue
            try:
                return Files(self._paths, step)
            except UNUSABLE as error:
                self.pass_over(step, str(error))
        last = next(reversed(self.passed_over.values()))
        if self._wanted is not None:
            raise Corrupt(f"step {self._wanted} cannot be loaded: {last}")
        raise Corrupt(f"{self._path}: no checkpoint can be loaded ({self._found}): {last}")

    def pass_over(self, step: int, failure: str) -> None:
        """Takes a step out of what may be loaded; the log records why."""
        self.passed_over[step] = failure
        older = next((step for step in self.steps if step not in self.passed_over), None)
        log.warning(
            "%s: the checkpoint of step %d cannot be used: %s; %s", self._path, step, failure,
            "no older one is left" if older is None else f"trying step {older}",
        )  # fmt: skip


class Files:
    """The files of all ranks at one step, open and pinned."""

    def __init__(self, paths: Sequence[str], step: int) -> None:
        self.step = step
        self.sources: list[Source] = []
        try:
            for path in paths:
                self.sources.append(Source(path, step))
            self.places = self._merged()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unpins them."""
        for source in self.sources:
            source.close()

    @property
    def save_id(self) -> str | None:
        """What distinguishes this save from others of its step; None when no file records it."""
        return next((source.save_id for source in self.sources if source.save_id), None)

    @property
    def entries(self) -> dict[Index, Entry]:
        """All items, whichever file they are in."""
        return {index: entry for index, (_, entry) in self.places.items()}

    def _merged(self) -> dict[Index, tuple[Source, Entry]]:
        """Where everything is, once it is clear that all of it is there and is of one save."""
        places: dict[Index, tuple[Source, Entry]] = {}
        for source in self.sources:
            if source.world_size != len(self.sources):
                raise StateFormatError(
                    f"{source.path} is the file of one of {source.world_size} processes, but "
                    f"{len(self.sources)} are read; write {RANK} where the rank is in the path, "
                    f"such as 'rank{RANK}.pcc'"
                )
            if source.save_id not in (None, self.save_id):
                raise StateFormatError(
                    f"{source.path} and other files hold step {self.step} of two different saves, "
                    "between which the job was started again"
                )
            for index, entry in source.entries.items():
                # What several ranks have in common may be in the files of all of them.
                if places.setdefault(index, (source, entry))[1] != entry:
                    raise StateFormatError(
                        f"{source.path}: '{index.fqn}' at {index.offsets} is {_shown(entry)}, in "
                        f"{places[index][0].path} it is {_shown(places[index][1])}"
                    )
        self._check_completeness(places)
        return places

    def _check_completeness(self, places: dict[Index, tuple[Source, Entry]]) -> None:
        """Every element of every tensor is in one of the files."""
        wholes: dict[str, Entry] = {}
        counts: dict[str, int] = {}
        for index, (source, entry) in places.items():
            whole = wholes.setdefault(index.fqn, entry)
            if (entry.size, entry.dtype) != (whole.size, whole.dtype):
                raise StateFormatError(
                    f"{source.path}: '{index.fqn}' is {_shown(entry)} and {_shown(whole)}"
                )
            counts[index.fqn] = counts.get(index.fqn, 0) + math.prod(entry.sizes)
        for fqn, whole in wholes.items():
            if whole.size is not None and counts[fqn] != math.prod(whole.size):
                raise StateFormatError(
                    f"step {self.step} holds {counts[fqn]} of the {math.prod(whole.size)} elements "
                    f"of '{fqn}': the other parts were never saved; load another step"
                )

    def metadata(self) -> Metadata:
        """What DCP plans a load with."""
        tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for index, entry in self.entries.items():
            if entry.size is None:
                tensors[index.fqn] = BytesStorageMetadata()
                continue
            assert entry.dtype is not None
            properties = TensorProperties(dtype=entry.dtype, requires_grad=entry.requires_grad)
            known = tensors.setdefault(
                index.fqn, TensorStorageMetadata(properties, torch.Size(entry.size), [])
            )
            assert isinstance(known, TensorStorageMetadata)
            known.chunks.append(
                ChunkStorageMetadata(torch.Size(index.offsets), torch.Size(entry.sizes))
            )
        return Metadata(
            tensors, self._planner_data(), storage_meta=StorageMeta(checkpoint_id=str(self.step))
        )

    def _planner_data(self) -> Any:
        """What the default planner keeps is a dictionary, of which each rank has a part."""
        parts = [source.planner_data for source in self.sources]
        if not all(isinstance(part, dict) for part in parts if part is not None):
            return parts[0]
        merged: dict[str, Any] = {}
        for part in parts:
            merged.update(part or {})
        return merged or None

    def place(self, index: MetadataIndex) -> tuple[Source, Entry]:
        """The file that holds what a plan asks for."""
        place = self.places.get(Index(index.fqn, tuple(index.offset or ())))
        if place is None:
            raise InvalidArgument(
                f"the load plan asks for '{index.fqn}' at {tuple(index.offset or ())}, which step "
                f"{self.step} does not hold"
            )
        return place

    # -- reading

    def check(self, items: Sequence[ReadItem]) -> None:
        """Verifies all that a plan will read."""
        boxes: dict[int, list[tuple[Entry, Sequence[int], Sequence[int]]]] = {}
        for item in items:
            source, entry = self.place(item.storage_index)
            boxes.setdefault(id(source), [])
            if item.type != LoadItemType.BYTE_IO:
                boxes[id(source)].append((entry, item.storage_offsets, item.lengths))
        for source in self.sources:
            if id(source) in boxes:
                source.check(boxes[id(source)])

    def read_objects(self, items: Sequence[ReadItem]) -> list[bytes]:
        """The bytes of objects, in the order of the items."""
        found: dict[int, bytes] = {}
        for source in self.sources:
            own = [
                (number, entry.node)
                for number, item in enumerate(items)
                for place, entry in [self.place(item.storage_index)]
                if place is source
            ]
            values = source.values([node for _, node in own]) if own else []
            for (number, _), value in zip(own, values, strict=True):
                found[number] = value
        return [found[number] for number in range(len(items))]

    def read_tensors(self, requests: Sequence[tuple[ReadItem, torch.Tensor]]) -> None:
        """Fills the targets."""
        pieces: dict[int, list[Piece]] = {}
        # Of what is tied now and was not when it was saved, the last one counts, as for DCP.
        last = {
            (target.data_ptr(), target.shape, target.stride(), target.dtype): (item, target)
            for item, target in requests
        }
        for item, target in last.values():
            source, entry = self.place(item.storage_index)
            if tuple(target.shape) != tuple(item.lengths):
                raise InvalidArgument(
                    f"the target of '{item.storage_index.fqn}' has the shape "
                    f"{tuple(target.shape)}, expected {tuple(item.lengths)}"
                )
            pieces.setdefault(id(source), []).extend(
                pieces_of(entry, item.storage_offsets, item.lengths, target)
            )
        for source in self.sources:
            if id(source) in pieces:
                source.read(pieces[id(source)])


def _shown(entry: Entry) -> str:
    if entry.size is None:
        return "an object"
    return f"{entry.sizes} of {entry.size}, {entry.dtype}"


def _paths(path: str) -> list[str]:
    """As many files as ranks saved, whatever their number is now."""
    first = path.replace(RANK, "0")
    if RANK not in path:
        return [first]
    try:
        with Reader(first) as reader:
            count = reader.report().get("world_size", 1)
    except FileMissing as error:
        raise FileMissing(f"{error} (the file of rank 0, with which a load begins)") from None
    return [path.replace(RANK, str(rank)) for rank in range(count)]


def _steps(path: str) -> list[int]:
    """The steps of a file, newest checkpoint first; the log reports damage."""
    with Reader(path) as reader:
        for damage in describe_damage(reader.report()):
            log.warning("%s: %s; run pcfsck to see more", path, damage)
        return [info.step for info in reader.list()]
