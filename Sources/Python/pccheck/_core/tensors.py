"""A tensor that a save stores, as the engine reads it, and the devices that tensors are on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """A device, and the stream of it whose work by now gives memory the values to be read."""

    #: As `pcc_place` has it.
    kind: int
    ordinal: int
    stream: int = 0


@dataclass(slots=True)
class TensorEntry:
    """One tensor to be stored: its name, its type and where its bytes are."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    address: int
    byte_count: int
    #: Whatever owns the memory; kept until the checkpoint is staged.
    owner: object
    #: Nobody but the encoder knows this memory.
    is_copy: bool = False
    #: Whatever changes this memory waits until it is staged, or is noticed.
    is_guarded: bool = False
    #: Where the address is; None for memory of this process.
    place: DevicePlace | None = None
