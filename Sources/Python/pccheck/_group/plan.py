"""Which rank stores which part of what several ranks hold alike.

Every rank of a set makes the same plan from the same tensors in the same order, and so they need
not talk. Each set of ranks has a plan of its own: what a rank holds with others is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .boxes import Box

# A share of a tensor has at least so many units, so that shares differ by a few percent.
_UNIT_COUNT = 32
#: A smaller tensor is stored by one rank: each more piece costs a name and a line of the document.
SMALL_BYTE_COUNT = 16 << 10


@dataclass(frozen=True, slots=True)
class Replica:
    """A part of a tensor that several ranks hold alike."""

    sizes: tuple[int, ...]
    item_size: int


class Plan:
    """Divides tensors, one after another, among the ranks of a set, evenly in bytes."""

    def __init__(self, rank_count: int) -> None:
        self._loads = [0] * rank_count

    @property
    def byte_counts(self) -> list[int]:
        """What each rank of the set stores so far."""
        return list(self._loads)

    def divide(self, replica: Replica) -> list[list[Box]]:
        """For each rank of the set the boxes that it stores, relative to the replica."""
        count = len(self._loads)
        total = Box.whole(replica.sizes).element_count
        boxes: list[list[Box]] = [[] for _ in range(count)]
        if not total:
            return boxes
        if total * replica.item_size < SMALL_BYTE_COUNT or count == 1:
            least = min(range(count), key=lambda place: (self._loads[place], place))
            ends = [0 if place < least else total for place in range(count)]
        else:
            unit = _unit(replica.sizes, total // count)
            ends = [total // unit * (place + 1) // count * unit for place in range(count)]
        for place, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            boxes[place] += _boxes_of(replica.sizes, start, end)
            self._loads[place] += (end - start) * replica.item_size
        return boxes


class Sharing:
    """What one rank stores of all that it holds, part by part in the order of the state."""

    def __init__(self, rank: int, *, is_split: bool) -> None:
        """Without ``is_split`` every rank stores all that it holds."""
        self._rank, self._is_split = rank, is_split
        self._plans: dict[tuple[int, ...], Plan] = {}

    def stored(
        self, replica: Replica, holders: tuple[int, ...], source: int | None = None
    ) -> list[Box]:
        """The boxes of a part that this rank stores, relative to the part.

        ``holders`` are the ranks that hold it, this one among them; each of them makes this call.
        ``source`` is the one rank whose values count, where that is so.
        """
        whole = Box.whole(replica.sizes)
        if self._is_split and source is not None:
            return [whole] if source == self._rank else []
        if self._is_split and len(holders) > 1:
            plan = self._plans.setdefault(holders, Plan(len(holders)))
            return plan.divide(replica)[holders.index(self._rank)]
        return [whole] if whole.element_count else []


def _unit(sizes: Sequence[int], share: int) -> int:
    """How many elements stay together: as many as differences of this size do not matter."""
    for axis in range(len(sizes)):
        unit = math.prod(sizes[axis + 1 :])
        if unit * _UNIT_COUNT <= share:
            return unit
    return 1


def _boxes_of(sizes: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """The boxes of a run of elements of a row-major tensor: a part of a row, whole rows, a part of
    a row. Each is contiguous."""
    if start >= end:
        return
    if not sizes:
        yield Box((), ())
        return
    row = math.prod(sizes[1:])
    first, last = -(-start // row), end // row
    if first > last:
        # Within one row.
        yield from _in_row(sizes, last, start - last * row, end - last * row)
        return
    if start < first * row:
        yield from _in_row(sizes, first - 1, start - (first - 1) * row, row)
    if first < last:
        yield Box((first, *(0 for _ in sizes[1:])), (last - first, *sizes[1:]))
    if last * row < end:
        yield from _in_row(sizes, last, 0, end - last * row)


def _in_row(sizes: Sequence[int], index: int, start: int, end: int) -> Iterator[Box]:
    for box in _boxes_of(sizes[1:], start, end):
        yield Box((index, *box.offsets), (1, *box.sizes))
