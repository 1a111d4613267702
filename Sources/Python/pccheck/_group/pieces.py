"""Parts of stored tensors, read straight into live memory or through a buffer of bounded size.

A chunk is read and verified completely, and holds parts of many tensors. So all that a load wants
of a file is read in the order of the payload, and a chunk once.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from .._core.reader import Reader
from .._core.tensors import DevicePlace

#: What goes through a buffer at once; one row of a tensor may be more.
BUFFER_BYTE_COUNT = 64 << 20
_ALIGNMENT = 64
#: An object that owns bytes and can be sliced, and their address.
Allocate: TypeAlias = Callable[[int], tuple[Any, int]]


@dataclass(frozen=True)
class Piece:
    """A run of payload bytes that is read at once."""

    start: int
    byte_count: int
    #: Live memory, or 0 for bytes that go through a buffer to ``fill``.
    address: int = 0
    fill: Callable[[Any], object] = lambda _: None
    #: Live memory that gets a copy of the buffer; in place of ``fill``.
    copied_to: int = 0
    #: Where the address is; None for memory of the host.
    device: DevicePlace | None = None

    @property
    def end(self) -> int:
        """The byte behind the last one."""
        return self.start + self.byte_count


class PieceReader:
    """Reads pieces of the selected checkpoint of one reader."""

    def __init__(self, reader: Reader, payload_byte_count: int, allocate: Allocate) -> None:
        self._reader = reader
        self._payload_byte_count = payload_byte_count
        self._allocate = allocate
        self._chunk_byte_count: int = reader.report()["chunk_byte_count"]

    def read(self, pieces: Sequence[Piece]) -> None:
        """Fills all pieces; every byte is verified before it is used."""
        tail = _Tail()
        batches = list(_batches(sorted(_apart(pieces), key=lambda piece: piece.start)))
        for batch, following in zip(batches, [*batches, []][1:], strict=True):
            memory, begin = self._allocate(_room(batch))
            places, place = [], 0
            for piece in batch:
                places.append(piece.address or begin + place)
                place += 0 if piece.address else _aligned(piece.byte_count)
            rows = [
                tail.rest(piece, address) for piece, address in zip(batch, places, strict=True)
            ]
            devices = [piece.device for piece in batch]
            # The chunk that this batch ends in may be the one in which the next begins.
            kept = self._tail(batch, following, tail)
            if kept is not tail:
                rows.append(kept.row)
                devices.append(None)
            tail = kept
            wanted = [item for item in zip(rows, devices, strict=True) if item[0][1]]
            self._reader.read([row for row, _ in wanted], [place for _, place in wanted])
            for piece, address in zip(batch, places, strict=True):
                if piece.copied_to:
                    ctypes.memmove(piece.copied_to, address, piece.byte_count)
                elif not piece.address:
                    piece.fill(memory[address - begin : address - begin + piece.byte_count])

    def _tail(
        self, batch: Sequence[Piece], following: Sequence[Piece], before: _Tail
    ) -> _Tail:
        last = (max(piece.end for piece in batch) - 1) // self._chunk_byte_count
        start, end = self._chunk(last)
        if not following or following[0].start >= end:
            return _Tail()
        if before.start == start and before.byte_count:
            return before
        return _Tail(start, end - start, *self._allocate(end - start))

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
        # Its owner lives as long as it is read into.
        scratch = self._allocate(min(count, len(order)) * self._chunk_byte_count)
        for first in range(0, len(order), count):
            rows = []
            for place, index in enumerate(order[first : first + count]):
                start, end = self._chunk(index)
                rows.append((start, end - start, scratch[1] + place * self._chunk_byte_count))
            self._reader.read(rows)


@dataclass(frozen=True)
class _Tail:
    """The last chunk of a batch, kept for the next one."""

    start: int = 0
    byte_count: int = 0
    #: What owns the bytes.
    memory: Any = None
    address: int = 0

    @property
    def row(self) -> tuple[int, int, int]:
        return self.start, self.byte_count, self.address

    def rest(self, piece: Piece, address: int) -> tuple[int, int, int]:
        """What is to be read of a piece when the part of it that is here has been copied. The
        host copies nothing to a device."""
        end = self.start + self.byte_count
        if piece.device is not None or not self.start <= piece.start < end:
            return piece.start, piece.byte_count, address
        count = min(end, piece.end) - piece.start
        ctypes.memmove(address, self.address + piece.start - self.start, count)
        return piece.start + count, piece.byte_count - count, address + count


class Target(Protocol):
    """How the arrays of a framework are filled; the first index of each is its first dimension."""

    def place(self, target: Any, dtype: Any) -> tuple[DevicePlace | None, int]:
        """Its device, and its address where its memory is the values as they are stored, dense;
        else 0."""
        ...

    def filling(
        self, target: Any, dtype: Any, shape: Sequence[int], offsets: Sequence[int],
        lengths: Sequence[int],
    ) -> Callable[[Any], object]:  # fmt: skip
        """Copies what is wanted of whole rows into the target. ``offsets`` are within a row."""
        ...


@dataclass(frozen=True)
class DenseBox:
    """A part of a dense tensor whose first element is at a byte of the payload."""

    start: int
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    target: Any


def split(box: DenseBox, dtype: Any, kind: Target) -> Iterator[Piece]:
    """Runs of whole rows; those that do not go straight into the target fit the buffer."""
    start, shape, offsets, lengths = box.start, box.shape, box.offsets, box.lengths
    target = box.target
    # A dimension of which one place is wanted only says where the others begin.
    while lengths and lengths[0] == 1:
        start += offsets[0] * math.prod(shape[1:]) * dtype.itemsize
        shape, offsets, lengths = shape[1:], offsets[1:], lengths[1:]
        # Not an index alone: of an array of NumPy it would be a scalar in the end.
        target = target[0, ...]
    rows = lengths[0] if lengths else 1
    row_byte_count = math.prod(shape[1:]) * dtype.itemsize
    if lengths:
        start += offsets[0] * row_byte_count
    byte_count = rows * row_byte_count
    device, address = kind.place(target, dtype) if lengths[1:] == shape[1:] else (None, 0)
    if address:
        yield Piece(start, byte_count, address, device=device)
    elif byte_count <= BUFFER_BYTE_COUNT or rows == 1:
        yield Piece(
            start, byte_count, fill=kind.filling(target, dtype, shape, offsets, lengths)
        )
    else:
        half = rows // 2
        for first, count in ((0, half), (half, rows - half)):
            part = DenseBox(
                start + first * row_byte_count, shape, (0, *offsets[1:]), (count, *lengths[1:]),
                target[first : first + count],
            )  # fmt: skip
            yield from split(part, dtype, kind)


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a row-major tensor."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def _apart(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, so that threads fill no byte of live memory at the same time; the copies to a
    device come one after another."""
    apart = [piece for piece in pieces if piece.device is not None]
    end = 0
    on_host = (piece for piece in pieces if piece.device is None)
    for piece in sorted(on_host, key=lambda piece: piece.address):
        if piece.address and piece.address < end:
            piece = Piece(piece.start, piece.byte_count, copied_to=piece.address)
        end = max(end, piece.address + piece.byte_count if piece.address else 0)
        apart.append(piece)
    return apart


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
