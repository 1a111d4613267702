"""Reads stored tensors: straight into their places, through a buffer, or into fresh memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from .._core.reader import Reader
from .._core.tensors import DevicePlace
from .memory import ArrayMemory, Place
from .references import references
from .stored import StoredTensor

# What tensors share that cannot be read straight into their place.
_BUFFER_BYTE_COUNT = 64 << 20
_ALIGNMENT = 64
# A tensor that is read into a buffer, and the function that copies it out.
_Filling: TypeAlias = tuple[StoredTensor, Callable[[Any], None]]
_Batch: TypeAlias = Sequence[_Filling]


def read_at_once(
    memory: ArrayMemory, document: Any, tensors: dict[str, StoredTensor]
) -> list[StoredTensor]:
    """The tensors that are to be read now, in the order of the file."""
    names = {
        name for name, node in references(document) if memory.is_read(next(iter(node)))
    }
    return [tensor for tensor in tensors.values() if tensor.name in names]


def read_tensors(
    reader: Reader, memory: ArrayMemory, tensors: Sequence[StoredTensor], places: dict[str, Place]
) -> None:
    """Reads the tensors, each into its place or into fresh memory."""
    rows, indirect = [], []
    devices: list[DevicePlace | None] = []
    for tensor in tensors:
        place = places.get(tensor.name) or memory.allocate_for(tensor)
        if place.fill is not None:
            indirect.append((tensor, place.fill))
            continue
        tensor.memory = place.memory
        rows.append((tensor.payload_offset, tensor.byte_count, place.address))
        devices.append(place.device)
    reader.read(rows, devices)
    for batch in _batches(indirect):
        _fill_from_buffer(reader, memory, batch)


def _fill_from_buffer(reader: Reader, memory: ArrayMemory, batch: _Batch) -> None:
    """Tensors whose live memory is not the stored bytes: cast, strided, or on a device."""
    starts, end = [], 0
    for tensor, _ in batch:
        starts.append(end)
        end += -(-tensor.byte_count // _ALIGNMENT) * _ALIGNMENT
    buffer, address = memory.allocate(end)
    reader.read(
        [
            (tensor.payload_offset, tensor.byte_count, address + start)
            for (tensor, _), start in zip(batch, starts, strict=True)
        ]
    )
    for (tensor, fill), start in zip(batch, starts, strict=True):
        fill(buffer[start : start + tensor.byte_count])


def _batches(items: _Batch) -> Iterator[_Batch]:
    """Runs of tensors that take one buffer of bounded size, or one tensor that is larger."""
    batch: list[_Filling] = []
    byte_count = 0
    for tensor, fill in items:
        if batch and byte_count + tensor.byte_count > _BUFFER_BYTE_COUNT:
            yield batch
            batch, byte_count = [], 0
        batch.append((tensor, fill))
        byte_count += tensor.byte_count
    if batch:
        yield batch
