"""Parts of stored tensors, read straight into live memory or through a buffer of bounded size.

A chunk is read and verified completely, and holds parts of many tensors. So all that a load wants
of a file is read in the order of the payload, and a chunk once.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..._core.reader import Reader
from ..types import is_plain_memory

# What goes through a buffer at once; one row of a tensor may be more.
BUFFER_BYTE_COUNT = 64 << 20
_ALIGNMENT = 64


class Region(Protocol):
    """A tensor in the payload of a file."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Its type."""
        ...

    @property
    def payload_offset(self) -> int:
        """Where its first element is in the payload."""
        ...

    @property
    def stride(self) -> tuple[int, ...]:
        """The distance between elements, in elements."""
        ...


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


class PieceReader:
    """Reads pieces of the selected checkpoint of one reader."""

    def __init__(self, reader: Reader, payload_byte_count: int) -> None:
        self._reader = reader
        self._payload_byte_count = payload_byte_count
        self._chunk_byte_count: int = reader.report()["chunk_byte_count"]

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
        return start, min(start + self._chunk_byte_count, self._payload_byte_count)

    def check(self, spans: Sequence[tuple[int, int]]) -> None:
        """Verifies every chunk that holds something of these spans of the payload."""
        chunks: set[int] = set()
        for start, end in spans:
            chunks.update(
                range(start // self._chunk_byte_count, (end - 1) // self._chunk_byte_count + 1)
            )
        count = max(1, BUFFER_BYTE_COUNT // self._chunk_byte_count)
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
    entry: Region, offsets: Sequence[int], lengths: Sequence[int], target: torch.Tensor
) -> Iterator[Piece]:
    """What is to be read to fill a target with the part of a tensor that begins at the offsets."""
    assert entry.dtype is not None
    if math.prod(lengths) == 0:
        return
    if entry.stride == dense(entry.sizes):
        box = _Box(entry.payload_offset, entry.sizes, tuple(offsets), tuple(lengths), target)
        yield from _split(box, entry.dtype)
        return
    start, end = cover(entry, offsets, lengths)
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
    elif byte_count <= BUFFER_BYTE_COUNT or rows == 1:
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


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a row-major tensor."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def cover(
    entry: Region, offsets: Sequence[int], lengths: Sequence[int]
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
        if batch and room + taken > BUFFER_BYTE_COUNT:
            yield batch
            batch, room = [], 0
        batch.append(piece)
        room += taken
    if batch:
        yield batch
