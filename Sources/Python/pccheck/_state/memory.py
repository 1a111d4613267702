"""What the walk of a load asks about arrays, and what it answers for NumPy.

The comparison, the search for places and the read know no framework. They ask one object, which
the public module passes down with the request; `_torch/loading` has that of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.tensors import DevicePlace
from .comparing import Comparison, Leaf
from .decoder import Decoder
from .stateful import fills_in_place, is_stateful
from .stored import StoredTensor, array_type


@dataclass(frozen=True)
class Place:
    """Live memory for a stored tensor."""

    #: What decoding returns.
    value: Any
    #: The same memory, flat and in bytes, of the kind that the decoder works on.
    memory: Any
    address: int
    #: The decoder's key for `value`.
    key: object
    #: Where the memory is not the stored bytes, what fills it from a buffer that holds them.
    fill: Callable[[Any], None] | None = None
    #: Bytes that are changed, from `address`; as many as are stored unless `fill` is given.
    span: int = 0
    #: The device that `address` is on; None for memory of this process.
    device: DevicePlace | None = None


class ArrayMemory:
    """Memory for NumPy arrays."""

    def allocate(self, byte_count: int) -> tuple[Any, int]:
        """An object that owns `byte_count` bytes, aligned to 64, and their address."""
        base = np.empty(byte_count + 64, np.uint8)
        start = -base.ctypes.data % 64
        memory = base[start : start + byte_count]
        return memory, memory.ctypes.data

    def allocate_for(self, tensor: StoredTensor) -> Place:
        """Fresh memory for a tensor that has no place in the live state."""
        memory, address = self.allocate(tensor.byte_count)
        return Place(None, memory, address, None)

    def is_read(self, kind: str) -> bool:
        """True when the bytes behind references of this kind are to be read at once."""
        return True

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """Builds the state from its document and the loaded tensors."""
        return Decoder(tensors, made)

    def state_of(self, target: Any, node: Any) -> Any:
        """The nest of live tensors of an object, whose state the node describes."""
        return target

    def prepare(self, target: Any) -> None:
        """Called before places are sought in a target that fits the document."""

    # -- comparing

    def compare_object(self, comparison: Comparison, node: Any, target: Any, name: str) -> Any:
        """The part of a node that fits an object with a state of its own; None for no object."""
        if not is_stateful(target):
            return None
        # The object alone decides what it does with its state.
        comparison.filled_count += 1
        return node

    def recorded_objects(self, text: str | None) -> dict[str, Any]:
        """What was recorded of the objects of a state, by key path."""
        return {}

    def finish_comparison(self, comparison: Comparison) -> None:
        """Called when all parts were compared."""

    def place_of_comparing(self, target: Any) -> int:
        """Parts with a higher number are compared after others."""
        return 0

    def leaf(self, node: dict[str, Any], tensors: dict[str, StoredTensor]) -> Leaf | None:
        """Type and shape of the array of a node; None when it is no array."""
        tensor = tensors.get(node.get("$array", ""))
        if tensor is None:
            return None
        dtype, shape = array_type(tensor, node.get("dtype"))
        return Leaf(dtype.name, shape)

    def live_leaf(self, target: Any) -> Leaf | None:
        """Type and shape of a live array."""
        if isinstance(target, np.ndarray):
            return Leaf(target.dtype.name, target.shape)
        return None

    def memory_of(self, target: Any) -> Any:
        """Tells live tensors in the same memory; None for one without."""
        if not isinstance(target, np.ndarray) or not target.size:
            return None
        return target.ctypes.data, target.dtype.str, target.shape, target.strides

    def keeps_values(self, saved: Leaf, live: Leaf) -> bool:
        """True when a type needs no conversion that may lose something."""
        return saved.dtype == live.dtype

    def converts(self, saved: Leaf, live: Leaf) -> bool:
        """True when values may be rounded to the live type where that was asked for."""
        kinds = [np.dtype(leaf.dtype).kind for leaf in (saved, live)]
        return kinds[0] == kinds[1] or set(kinds) <= {"i", "u"}

    def fills_in_place(self, target: Any) -> bool:
        """True when a loaded value goes into this object rather than in its place."""
        return fills_in_place(target)

    def dropped_spans(self, target: Any) -> list[tuple[int, int]]:
        """Live memory that its owner lets go of when it is restored."""
        return []

    # -- in place

    def unwrapped(
        self, node: dict[str, Any], target: Any, claim: Callable[[int, int], bool]
    ) -> list[tuple[Any, Any]]:
        """The nodes and the targets inside of ones that wrap tensors.

        `claim` reserves live memory, by address and size, that nothing else may fill.
        """
        return []

    def places_of_divided(self, document: Any) -> dict[str, Place]:
        """The live memory for tensors that are divided among several files."""
        return {}

    def read_divided(self) -> None:
        """Reads what ``places_of_divided`` found."""

    def place(
        self, node: dict[str, Any], kind: str, tensor: StoredTensor, target: Any
    ) -> Place | None:
        """The live memory to load a tensor into, when `target` fits it."""
        if kind != "$array" or type(target) is not np.ndarray:
            return None
        tag = node.get("dtype")
        flags = target.flags
        if not (flags.c_contiguous and flags.writeable and flags.aligned):
            return None
        if (target.dtype, target.shape) != array_type(tensor, tag):
            return None
        flat = target.reshape(-1).view(np.uint8)
        return Place(target, flat, flat.ctypes.data, ("array", tensor.name, tag))
