"""A tensor that a save stores, as the engine reads it."""

from __future__ import annotations

from dataclasses import dataclass


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
