"""Parts of stored tensors for torch: read straight into live tensors, or copied and converted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from ..._core.reader import Reader
from ..._core.tensors import DevicePlace
from ..._group import pieces
from ..._group.pieces import DenseBox, Piece, dense, split
from ..types import is_dense

__all__ = ["Piece", "PieceReader", "Region", "cover", "dense", "pieces_of"]


#: Where the engine fills a tensor on its device; None for one that it does not.
Located: TypeAlias = Callable[[torch.Tensor], tuple[DevicePlace | None, int] | None]


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


class PieceReader(pieces.PieceReader):
    """Reads pieces of the selected checkpoint of one reader; its buffers are tensors."""

    def __init__(self, reader: Reader, payload_byte_count: int) -> None:
        super().__init__(reader, payload_byte_count, _allocate)


def _allocate(byte_count: int) -> tuple[Any, int]:
    memory = torch.empty(byte_count, dtype=torch.uint8)
    return memory, memory.data_ptr()


def pieces_of(
    entry: Region, offsets: Sequence[int], lengths: Sequence[int], target: torch.Tensor,
    located: Located = lambda _: None,
) -> Iterator[Piece]:
    """What is to be read to fill a target with the part of a tensor that begins at the offsets.

    What is ``located`` on a device is filled there.
    """
    assert entry.dtype is not None
    if math.prod(lengths) == 0:
        return
    if entry.stride == dense(entry.sizes):
        box = DenseBox(entry.payload_offset, entry.sizes, tuple(offsets), tuple(lengths), target)
        yield from split(box, entry.dtype, _Tensors(located))
        return
    start, end = cover(entry, offsets, lengths)
    dtype, stride = entry.dtype, entry.stride

    def fill(memory: torch.Tensor) -> object:
        return target.copy_(memory.view(dtype).as_strided(tuple(lengths), stride))

    yield Piece(start, end - start, fill=fill)


class _Tensors:
    """Tensors of any type, layout and device."""

    def __init__(self, located: Located) -> None:
        self._located = located

    def place(
        self, target: torch.Tensor, dtype: torch.dtype
    ) -> tuple[DevicePlace | None, int]:
        if target.dtype != dtype or not is_dense(target):
            return None, 0
        return self._located(target) or (None, target.data_ptr() if target.is_cpu else 0)

    def filling(
        self, target: torch.Tensor, dtype: torch.dtype, shape: Sequence[int],
        offsets: Sequence[int], lengths: Sequence[int],
    ) -> Callable[[torch.Tensor], object]:  # fmt: skip
        def fill(memory: torch.Tensor) -> object:
            rows = memory.view(dtype).view(*lengths[:1], *shape[1:])
            for dimension in range(1, len(lengths)):
                rows = rows.narrow(dimension, offsets[dimension], lengths[dimension])
            return target.copy_(rows)

        return fill


def cover(
    entry: Region, offsets: Sequence[int], lengths: Sequence[int]
) -> tuple[int, int]:
    """The payload bytes from the first to the last element of a part."""
    assert entry.dtype is not None
    first = sum(place * step for place, step in zip(offsets, entry.stride, strict=True))
    last = sum((count - 1) * step for count, step in zip(lengths, entry.stride, strict=True))
    start = entry.payload_offset + first * entry.dtype.itemsize
    return start, start + (last + 1) * entry.dtype.itemsize
