"""Where loaded tensors go: straight into memory that the caller has already, or into fresh memory.

A stored tensor goes *in place* when the live one at the same key has its type, its shape and a
dense row-major layout in memory that this process can write. The rest is allocated. Nothing is
ever held twice.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CheckpointError, StateFormatError
from .state import Decoder, StoredTensor, array_type

# Tells "nothing to fill" from a None in the caller's state.
_NOTHING = object()
_REFERENCES = ("$tensor", "$array")
_LISTED_NAME_COUNT = 8


@dataclass(frozen=True)
class Place:
    """Live memory that a stored tensor fits exactly."""

    #: What decoding gives back.
    value: Any
    #: The same memory, flat and in bytes, of the kind that the decoder works on.
    memory: Any
    address: int
    #: The decoder's key for `value`.
    key: object


class ArrayMemory:
    """Memory for NumPy arrays."""

    def allocate(self, byte_count: int) -> tuple[Any, int]:
        """An object that owns `byte_count` bytes, aligned to 64, and their address."""
        base = np.empty(byte_count + 64, np.uint8)
        start = -base.ctypes.data % 64
        memory = base[start : start + byte_count]
        return memory, memory.ctypes.data

    def decoder(self, tensors: dict[str, StoredTensor], made: dict[object, Any]) -> Decoder:
        """Builds the state from its document and the loaded tensors."""
        return Decoder(tensors, made)

    def state_of(self, target: Any) -> Any:
        """The nest of live tensors of an object, whose state the document describes."""
        return target

    def place(
        self, kind: str, tag: str | None, tensor: StoredTensor, target: Any
    ) -> Place | None:
        """The live memory to load a tensor into, when `target` fits it."""
        if kind != "$array" or type(target) is not np.ndarray:
            return None
        flags = target.flags
        if not (flags.c_contiguous and flags.writeable and flags.aligned):
            return None
        if (target.dtype, target.shape) != array_type(tensor, tag):
            return None
        flat = target.reshape(-1).view(np.uint8)
        return Place(target, flat, flat.ctypes.data, ("array", tensor.name, tag))


class Loading:
    """One request: what to load, and what of it goes into live memory."""

    def __init__(
        self,
        memory: ArrayMemory,
        into: Any = _NOTHING,
        *,
        parts: list[str] | None = None,
        optional_parts: list[str] | None = None,
        tensor: str | None = None,
    ) -> None:
        """`parts` are the top-level keys to load, `tensor` the one tensor; default everything."""
        self.memory = memory
        self._into = into
        self._parts = parts
        self._optional_parts = optional_parts or []
        self._tensor = tensor
        #: True once something was loaded, or may have been, into the caller's memory.
        self.has_changed_targets = False

    def selected(self, document: Any) -> Any:
        """The part of a state document that is asked for."""
        if self._tensor is not None:
            return _reference_to(self._tensor, document)
        if self._parts is None or not isinstance(document, dict) or _tag(document):
            return document
        names = self._parts + [name for name in self._optional_parts if name in document]
        return {name: part_of(document, name) for name in names}

    def places(self, document: Any, tensors: dict[str, StoredTensor]) -> dict[str, Place]:
        """By name, the tensors that go into live memory."""
        if self._into is _NOTHING:
            return {}
        matching = _Matching(self.memory, tensors)
        try:
            matching.match(document, self._into)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise StateFormatError(f"the state document is broken: {error}") from error
        return matching.places

    def explain(self, failure: Exception) -> None:
        """Says in an error what it left behind."""
        if self.has_changed_targets and isinstance(failure, CheckpointError):
            failure.args = (
                f"{failure}; the tensors that were to be filled in place hold unspecified values "
                "now: load another checkpoint into them, or initialize them again",
            )


class _Matching:
    """Walks a state document and the live state side by side."""

    def __init__(self, memory: ArrayMemory, tensors: dict[str, StoredTensor]) -> None:
        self.places: dict[str, Place] = {}
        self._memory = memory
        self._tensors = tensors
        self._decoder = Decoder({})
        # Ends and starts of the memory given away, sorted: two tensors must not share a byte.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def match(self, node: Any, target: Any) -> None:
        """Finds places for the tensors below a node."""
        target = self._memory.state_of(target)
        if isinstance(node, list):
            if isinstance(target, list):
                for child, item in zip(node, target, strict=False):
                    self.match(child, item)
            return
        if not isinstance(node, dict):
            return
        tag = _tag(node)
        if tag in _REFERENCES:
            self._place(tag, node, target)
        elif tag == "$tuple":
            if isinstance(target, tuple):
                self.match(node[tag], list(target))
        elif tag in ("", "$dict", "$ordered", "$counter") and isinstance(target, dict):
            for key, child in self._items(node[tag] if tag else node):
                if key in target:
                    self.match(child, target[key])

    def _items(self, content: Any) -> Iterator[tuple[Any, Any]]:
        if isinstance(content, dict):
            yield from content.items()
        else:
            for key, item in content:
                yield self._decoder.decode(key), item

    def _place(self, kind: str, node: dict[str, Any], target: Any) -> None:
        tensor = self._tensors.get(node[kind])
        if tensor is None or tensor.name in self.places or not tensor.byte_count:
            return
        place = self._memory.place(kind, node.get("dtype"), tensor, target)
        if place is not None and self._claim(place.address, tensor.byte_count):
            self.places[tensor.name] = place

    def _claim(self, start: int, byte_count: int) -> bool:
        end = start + byte_count
        index = bisect.bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] < end:
            return False
        self._starts.insert(index, start)
        self._ends.insert(index, end)
        return True


def _tag(node: dict[str, Any]) -> str:
    first = next(iter(node), "")
    return first if first.startswith("$") else ""


def references(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stored tensors that a document names, each with the node that names it."""
    pending = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            tag = _tag(node)
            content = node.get(tag)
            if tag in _REFERENCES and isinstance(content, str):
                yield content, node
            elif tag in ("$bytes", "$bytearray"):
                if isinstance(content, dict) and isinstance(content.get("tensor"), str):
                    yield content["tensor"], node
            else:
                pending += node.values()


def _reference_to(name: str, document: Any) -> Any:
    names = []
    for found, node in references(document):
        if found == name:
            return node
        names.append(found)
    shown = ", ".join(sorted(names)[:_LISTED_NAME_COUNT]) or "none"
    more = ", …" if len(names) > _LISTED_NAME_COUNT else ""
    raise CheckpointError(
        f"tensor '{name}' is not in the checkpoint, which holds {len(names)} tensors: "
        f"{shown}{more}"
    )


def part_of(loaded: Any, name: str) -> Any:
    """A named part of a loaded state, or of its document."""
    if not isinstance(loaded, dict) or name not in loaded:
        held = ", ".join(loaded) if isinstance(loaded, dict) else type(loaded).__qualname__
        raise CheckpointError(f"'{name}' is not in the checkpoint, which holds: {held}")
    return loaded[name]
