"""Which live memory each stored tensor is read into.

A stored tensor goes *in place* when the live one at the same key has its type, its shape and a
dense row-major layout in memory that this process can write. The rest is allocated. Nothing is
ever held twice.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable
from typing import Any

from .comparing import SEQUENCE_TAGS, items_of
from .memory import ArrayMemory, Place
from .references import REFERENCES, tag_of
from .stored import StoredTensor


class Matching:
    """Walks a state document and the live state side by side."""

    def __init__(self, memory: ArrayMemory, tensors: dict[str, StoredTensor]) -> None:
        self.places: dict[str, Place] = {}
        #: True once a stored tensor had anything live at its place, whether it fits or not.
        self.has_met = False
        self._memory = memory
        self._tensors = tensors
        # Ends and starts of the memory given away, sorted: two tensors must not share a byte.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def match(self, node: Any, target: Any) -> None:
        """Finds places for the tensors below a node."""
        self._memory.prepare(target)
        target = self._memory.state_of(target, node)
        if isinstance(node, list):
            if isinstance(target, list):
                for child, item in zip(node, target, strict=False):
                    self.match(child, item)
            return
        if not isinstance(node, dict):
            return
        tag = tag_of(node)
        if tag in REFERENCES:
            self._place(tag, node, target)
        elif tag in SEQUENCE_TAGS:
            if isinstance(target, (tuple, deque)):
                self.match(node[tag], list(target))
        elif isinstance(target, dict):
            for _, key, child in items_of(node) or []:
                if key in target:
                    self.match(child, target[key])
        else:
            self._note_met(target)
            for child, item in self._memory.unwrapped(node, target, self._claim):
                self.match(child, item)

    def _place(self, kind: str, node: dict[str, Any], target: Any) -> None:
        tensor = self._tensors.get(node[kind])
        self._note_met(target)
        if tensor is None or tensor.name in self.places or not tensor.byte_count:
            return
        place = self._memory.place(node, kind, tensor, target)
        if place is not None and self._claim(place.address, place.span or tensor.byte_count):
            self.places[tensor.name] = place

    def _note_met(self, target: Any) -> None:
        self.has_met = self.has_met or self._memory.live_leaf(target) is not None

    def _claim(self, start: int, byte_count: int) -> bool:
        end = start + byte_count
        index = bisect.bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] < end:
            return False
        self._starts.insert(index, start)
        self._ends.insert(index, end)
        return True


def spans_of(
    places: dict[str, Place], tensors: dict[str, StoredTensor]
) -> set[tuple[int, int, str]]:
    """The live memory of places, from and to."""
    return {
        (place.address, place.address + (place.span or tensors[name].byte_count), name)
        for name, place in places.items()
    }


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same memory in as few runs as there are."""
    runs: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs
