"""One file of a checkpoint of ``pccheck.dcp``: what it holds, and reading its chunks once.

A chunk is read and verified completely, and holds parts of many tensors. So all that a load wants
of a file is read in the order of the payload: at once where it goes straight into live memory,
else in batches through a buffer of bounded size.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .._core.reader import CheckpointInfo, Reader
from .._state.document import DOCUMENT_KEY, parse_document
from .._state.references import references
from .._state.stored import STORED_ITEM_SIZE, StoredTensor, View
from .._torch.loading.decoder import TorchDecoder, tensor_type
from .._torch.types import dtype_named, is_plain_memory
from ..errors import StateFormatError

LAYOUT_VERSION = 1
# What goes through a buffer at once; one row of a tensor may be more.
_BUFFER_BYTE_COUNT = 64 << 20
_ALIGNMENT = 64


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


@dataclass(frozen=True)
class Piece:
    """A run of payload bytes that is read at once."""

    start: int
    byte_count: int
    #: Live memory, or 0 for bytes that go through a buffer to ``fill``.
    address: int = 0
    fill: Callable[[torch.Tensor], object] = lambda _: None

    @property
    def end(self) -> int:
        """The byte behind the last one."""
        return self.start + self.byte_count


class Source:
    """One rank's file at one step, pinned until it is closed."""

    def __init__(self, path: str, step: int) -> None:
        """A checkpoint that nothing vouches for is verified first."""
        self.path = path
        self._reader = Reader(path)
        try:
            self.info: CheckpointInfo = self._reader.select_newest(step)
            self._chunk_byte_count: int = self._reader.report()["chunk_byte_count"]
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
                "torch.distributed.checkpoint; load it with pccheck.torch"
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
            stride, offset = _dense(shape), stored.payload_offset
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
        tail = _Tail()
        batches = list(_batches(sorted(_apart(pieces), key=lambda piece: piece.start)))
        for batch, following in zip(batches, [*batches, []][1:], strict=True):
            memory = torch.empty(_room(batch), dtype=torch.uint8)
            places, place = [], 0
            for piece in batch:
                places.append(piece.address or memory.data_ptr() + place)
                place += 0 if piece.address else _aligned(piece.byte_count)
            rows = [
                tail.rest(piece, address) for piece, address in zip(batch, places, strict=True)
            ]
            # The chunk that this batch ends in may be the one in which the next begins.
            kept = self._tail(batch, following, tail)
            if kept is not tail:
                rows.append(kept.row)
            tail = kept
            self._reader.read([row for row in rows if row[1]])
            for piece, address in zip(batch, places, strict=True):
                if not piece.address:
                    start = address - memory.data_ptr()
                    piece.fill(memory[start : start + piece.byte_count])

    def _tail(
        self, batch: Sequence[Piece], following: Sequence[Piece], before: _Tail
    ) -> _Tail:
        last = (max(piece.end for piece in batch) - 1) // self._chunk_byte_count
        start, end = self._chunk(last)
        if not following or following[0].start >= end:
            return _Tail()
        if before.start == start and before.memory.numel():
            return before
        return _Tail(start, torch.empty(end - start, dtype=torch.uint8))

    def _chunk(self, index: int) -> tuple[int, int]:
        start = index * self._chunk_byte_count
        return start, min(start + self._chunk_byte_count, self.info.payload_byte_count)

    def check(self, boxes: Sequence[tuple[Entry, Sequence[int], Sequence[int]]]) -> None:
        """Verifies every chunk that holds something of these parts of tensors."""
        chunks: set[int] = set()
        for entry, offsets, lengths in boxes:
            if math.prod(lengths):
                start, end = _cover(entry, offsets, lengths)
                chunks.update(
                    range(start // self._chunk_byte_count, (end - 1) // self._chunk_byte_count + 1)
                )
        count = max(1, _BUFFER_BYTE_COUNT // self._chunk_byte_count)
        order = sorted(chunks)
        scratch = torch.empty(
            min(count, len(order)) * self._chunk_byte_count, dtype=torch.uint8
        )
        for first in range(0, len(order), count):
            rows = []
            for place, index in enumerate(order[first : first + count]):
                start, end = self._chunk(index)
                address = scratch.data_ptr() + place * self._chunk_byte_count
                rows.append((start, end - start, address))
            self._reader.read(rows)


@dataclass(frozen=True)
class _Tail:
    """The last chunk of a batch, kept for the next one."""

    start: int = 0
    memory: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    @property
    def row(self) -> tuple[int, int, int]:
        return self.start, self.memory.numel(), self.memory.data_ptr()

    def rest(self, piece: Piece, address: int) -> tuple[int, int, int]:
        """What is to be read of a piece when the part of it that is here has been copied."""
        end = self.start + self.memory.numel()
        if not self.start <= piece.start < end:
            return piece.start, piece.byte_count, address
        count = min(end, piece.end) - piece.start
        ctypes.memmove(address, self.memory.data_ptr() + piece.start - self.start, count)
        return piece.start + count, piece.byte_count - count, address + count


def pieces_of(
    entry: Entry, offsets: Sequence[int], lengths: Sequence[int], target: torch.Tensor
) -> Iterator[Piece]:
    """What is to be read to fill a target with the part of a tensor that begins at the offsets."""
    assert entry.dtype is not None
    if math.prod(lengths) == 0:
        return
    if entry.stride == _dense(entry.sizes):
        box = _Box(entry.payload_offset, entry.sizes, tuple(offsets), tuple(lengths), target)
        yield from _split(box, entry.dtype)
        return
    start, end = _cover(entry, offsets, lengths)
    dtype, stride = entry.dtype, entry.stride

    def fill(memory: torch.Tensor) -> object:
        return target.copy_(memory.view(dtype).as_strided(tuple(lengths), stride))

    yield Piece(start, end - start, fill=fill)


@dataclass(frozen=True)
class _Box:
    """A part of a dense tensor whose first element is at a byte of the payload."""

    start: int
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    target: torch.Tensor


def _split(box: _Box, dtype: torch.dtype) -> Iterator[Piece]:
    """Runs of whole rows; those that do not go straight into the target fit the buffer."""
    start, shape, offsets, lengths = box.start, box.shape, box.offsets, box.lengths
    target = box.target
    # A dimension of which one place is wanted only says where the others begin.
    while lengths and lengths[0] == 1:
        start += offsets[0] * math.prod(shape[1:]) * dtype.itemsize
        shape, offsets, lengths = shape[1:], offsets[1:], lengths[1:]
        target = target.select(0, 0)
    rows = lengths[0] if lengths else 1
    row_byte_count = math.prod(shape[1:]) * dtype.itemsize
    if lengths:
        start += offsets[0] * row_byte_count
    byte_count = rows * row_byte_count
    is_whole = lengths[1:] == shape[1:]
    if is_whole and target.dtype == dtype and is_plain_memory(target):
        yield Piece(start, byte_count, target.data_ptr())
    elif byte_count <= _BUFFER_BYTE_COUNT or rows == 1:
        yield Piece(start, byte_count, fill=_Filling(dtype, shape, offsets, lengths, target))
    else:
        half = rows // 2
        for first, count in ((0, half), (half, rows - half)):
            part = _Box(
                start + first * row_byte_count, shape, (0, *offsets[1:]), (count, *lengths[1:]),
                target[first : first + count],
            )  # fmt: skip
            yield from _split(part, dtype)


@dataclass(frozen=True)
class _Filling:
    """Copies what is wanted of whole rows into a target of any type, layout and device."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    target: torch.Tensor

    def __call__(self, memory: torch.Tensor) -> object:
        rows = memory.view(self.dtype).view(*self.lengths[:1], *self.shape[1:])
        for dimension in range(1, len(self.lengths)):
            rows = rows.narrow(dimension, self.offsets[dimension], self.lengths[dimension])
        return self.target.copy_(rows)


def _counts(values: Any) -> tuple[int, ...]:
    counts = tuple(values)
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in counts):
        raise ValueError(f"{values!r} are not counts")
    return counts


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def _cover(
    entry: Entry, offsets: Sequence[int], lengths: Sequence[int]
) -> tuple[int, int]:
    """The payload bytes from the first to the last element of a part."""
    assert entry.dtype is not None
    first = sum(place * step for place, step in zip(offsets, entry.stride, strict=True))
    last = sum((count - 1) * step for count, step in zip(lengths, entry.stride, strict=True))
    start = entry.payload_offset + first * entry.dtype.itemsize
    return start, start + (last + 1) * entry.dtype.itemsize


def _apart(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, so that threads fill no byte of live memory at the same time."""
    apart, end = [], 0
    for piece in sorted(pieces, key=lambda piece: piece.address):
        if piece.address and piece.address < end:
            piece = Piece(piece.start, piece.byte_count, fill=_Copying(piece.address))
        end = max(end, piece.address + piece.byte_count if piece.address else 0)
        apart.append(piece)
    return apart


@dataclass(frozen=True)
class _Copying:
    """Copies bytes to an address of live memory."""

    address: int

    def __call__(self, memory: torch.Tensor) -> object:
        return ctypes.memmove(self.address, memory.data_ptr(), memory.numel())


def _aligned(byte_count: int) -> int:
    return -(-byte_count // _ALIGNMENT) * _ALIGNMENT


def _room(batch: Sequence[Piece]) -> int:
    return sum(_aligned(piece.byte_count) for piece in batch if not piece.address)


def _batches(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Runs of pieces that take one buffer of bounded size, or one piece that is larger."""
    batch: list[Piece] = []
    room = 0
    for piece in pieces:
        taken = 0 if piece.address else _aligned(piece.byte_count)
        if batch and room + taken > _BUFFER_BYTE_COUNT:
            yield batch
            batch, room = [], 0
        batch.append(piece)
        room += taken
    if batch:
        yield batch
