"""One file of a checkpoint of ``pccheck.dcp``: what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .._core.reader import CheckpointInfo, Reader
from .._group.decision import Candidate
from .._state.document import DOCUMENT_KEY, parse_document
from .._state.references import references
from .._state.stored import STORED_ITEM_SIZE, StoredTensor, View
from .._torch.loading.decoder import TorchDecoder, tensor_type
from .._torch.loading.pieces import Piece, PieceReader, cover, dense
from .._torch.types import dtype_named
from ..errors import NoCheckpoint, StateFormatError

LAYOUT_VERSION = 1


@dataclass(frozen=True)
class Index:
    """A tensor, or the part of one that begins at these offsets, or an object."""

    fqn: str
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """What a file holds under an index."""

    #: Of the part of a tensor that is here.
    sizes: tuple[int, ...] = ()
    #: Of the full tensor; None for an object.
    size: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    requires_grad: bool = field(default=False, compare=False)
    #: Where the first element is in the payload, and the distance between elements, in elements.
    payload_offset: int = field(default=0, compare=False)
    stride: tuple[int, ...] = field(default=(), compare=False)
    #: The node of an object.
    node: Any = field(default=None, compare=False)


class Source:
    """One rank's part of a checkpoint, pinned in its file until it is closed."""

    def __init__(self, path: str, sequence: int, candidate: Candidate) -> None:
        """A part that no superblock names is verified by its first read."""
        self.path = path
        self._reader = Reader(path)
        try:
            self.info: CheckpointInfo = self._reader.select(sequence)
            if (self.info.attempt, self.info.step) != (candidate.attempt, candidate.step):
                raise NoCheckpoint(
                    f"{path}: sequence {sequence} is step {self.info.step} now, expected step "
                    f"{candidate.step}: a writer has continued"
                )
            self._pieces = PieceReader(self._reader, self.info.payload_byte_count)
            self._manifest, self._data_offset = self._reader.manifest()
            self._read_layout()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unpins the checkpoint."""
        self._reader.close()

    # -- what the files hold

    def _read_layout(self) -> None:
        metadata = self._manifest.pop("__metadata__", {})
        document = parse_document(metadata[DOCUMENT_KEY]) if DOCUMENT_KEY in metadata else None
        if not isinstance(document, dict) or "dcp" not in document:
            raise StateFormatError(
                f"{self.path}: step {self.info.step} was not saved by "
                "torch.distributed.checkpoint; load it with pccheck.torch, or a folder with "
                "pccheck.distributed"
            )
        try:
            layout = self.value(document["dcp"])
            if layout["version"] != LAYOUT_VERSION:
                raise StateFormatError(
                    f"{self.path}: step {self.info.step} has version {layout['version']} of the "
                    f"DCP layout, this package reads {LAYOUT_VERSION}: install a newer pccheck"
                )
            self.planner_data: Any = layout["planner"]
            self.world_size: int = layout["world_size"]
            #: What the ranks of one save have in common; None in old files.
            self.save_id: str | None = layout.get("save")
            self.entries = self._entries(layout["items"], document)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise StateFormatError(
                f"{self.path}: the DCP layout of step {self.info.step} is damaged "
                f"({type(error).__name__}: {error})"
            ) from None

    def _entries(self, items: list[Any], document: dict[str, Any]) -> dict[Index, Entry]:
        entries: dict[Index, Entry] = {}
        names: dict[tuple[bool, str], str] = {}
        for item in items:
            is_tensor, key, fqn = "size" in item, item["key"], item["fqn"]
            other = names.setdefault((is_tensor, key), fqn)
            index = Index(fqn, tuple(item.get("offsets", ())))
            if other != fqn or index in entries:
                raise StateFormatError(
                    f"{self.path}: step {self.info.step} holds '{other}' and '{fqn}' under the one "
                    f"name '{key}', so one of them is lost: an older pccheck mixed them up. Load "
                    "another step"
                )
            node = document["state" if is_tensor else "objects"][key]
            entries[index] = self._tensor(item, node) if is_tensor else Entry(node=node)
        return entries

    def _tensor(self, item: dict[str, Any], node: dict[str, Any]) -> Entry:
        """Where a tensor is in the payload, checked against what the layout records of it."""
        if "$view" in node:
            view = View(node)
            stored = self._stored(view.name)
            dtype, shape, stride = dtype_named(view.dtype), view.shape, view.stride
            view.check(dtype.itemsize, stored)
            offset = stored.payload_offset + view.offset
        else:
            stored = self._stored(node["$tensor"])
            dtype, shape = tensor_type(stored, node.get("dtype"))
            stride, offset = dense(shape), stored.payload_offset
        size, offsets, sizes = (_counts(item[key]) for key in ("size", "offsets", "sizes"))
        ends = [start + count for start, count in zip(offsets, sizes, strict=True)]
        if shape != sizes or any(end > count for end, count in zip(ends, size, strict=True)):
            raise StateFormatError(
                f"{self.path}: '{item['fqn']}' has the shape {shape}, expected {sizes} at "
                f"{offsets} of {size}"
            )
        return Entry(sizes, size, dtype, item["requires_grad"], offset, stride)

    def _stored(self, name: str) -> StoredTensor:
        row = self._manifest.get(name)
        if row is None or row["dtype"] not in STORED_ITEM_SIZE:
            raise StateFormatError(f"{self.path}: the tensor '{name}' is not stored, or unknown")
        begin, end = row["data_offsets"]
        stored = StoredTensor(
            name, row["dtype"], tuple(row["shape"]), payload_offset=self._data_offset + begin
        )
        if end - begin != stored.byte_count:
            raise StateFormatError(
                f"{self.path}: '{name}' has {end - begin} bytes; its type and shape take "
                f"{stored.byte_count}"
            )
        return stored

    # -- reading

    def value(self, node: Any) -> Any:
        """What a node of the document stands for."""
        return self.values([node])[0]

    def values(self, nodes: Sequence[Any]) -> list[Any]:
        """The same of several nodes, whose bytes are read together."""
        tensors = {name: self._stored(name) for name, _ in references(list(nodes))}
        for stored in tensors.values():
            stored.memory = torch.empty(stored.byte_count, dtype=torch.uint8)
        self.read(
            [
                Piece(stored.payload_offset, stored.byte_count, stored.memory.data_ptr())
                for stored in tensors.values()
                if stored.byte_count
            ]
        )
        decoder = TorchDecoder(tensors)
        return [decoder.decode(node) for node in nodes]

    def read(self, pieces: Sequence[Piece]) -> None:
        """Fills all pieces; every byte is verified before it is used."""
        self._pieces.read(pieces)

    def check(self, boxes: Sequence[tuple[Entry, Sequence[int], Sequence[int]]]) -> None:
        """Verifies every chunk that holds something of these parts of tensors."""
        self._pieces.check(
            [
                cover(entry, offsets, lengths)
                for entry, offsets, lengths in boxes
                if math.prod(lengths)
            ]
        )


def _counts(values: Any) -> tuple[int, ...]:
    counts = tuple(values)
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in counts):
        raise ValueError(f"{values!r} are not counts")
    return counts
