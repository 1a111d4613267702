"""What the files of all ranks hold of one checkpoint of ``pccheck.dcp``."""

from __future__ import annotations

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

from .._group.decision import Candidate
from .._torch.loading.pieces import Piece, pieces_of
from ..errors import InvalidArgument, StateFormatError
from .reading import Entry, Index, Source

class Files:
    """The files of one checkpoint, open and pinned."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.step = candidate, candidate.step
        self.sources: list[Source] = []
        try:
            for path, sequence in candidate.files:
                self.sources.append(Source(path, sequence, candidate))
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
                    f"{len(self.sources)} are read; give StorageReader the folder of all files"
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
