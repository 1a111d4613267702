"""Boxes of a tensor: rectangular parts by their offsets and sizes. No process, no file, no torch.

A rank holds a box, or several when a dimension is sharded in a strided way. The elements of its
local tensor along a dimension are then those of several runs, one after another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

#: First index and count of successive indices of a dimension.
Run: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box that is the tensor itself."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def element_count(self) -> int:
        """How many elements it has; one without dimensions has one."""
        return math.prod(self.sizes)

    def within(self, other: Box) -> Box | None:
        """What it has in common with another one; None when that is nothing."""
        offsets, sizes = [], []
        for start, count, low, extent in zip(
            self.offsets, self.sizes, other.offsets, other.sizes, strict=True
        ):
            first, end = max(start, low), min(start + count, low + extent)
            if first >= end:
                return None
            offsets.append(first)
            sizes.append(end - first)
        return Box(tuple(offsets), tuple(sizes))

    def without(self, part: Box) -> Iterator[Box]:
        """The boxes that remain of it without a part that lies within it."""
        offsets, sizes = list(self.offsets), list(self.sizes)
        for axis, (start, count) in enumerate(zip(part.offsets, part.sizes, strict=True)):
            before, after = start - offsets[axis], offsets[axis] + sizes[axis] - start - count
            if before:
                yield Box(tuple(offsets), (*sizes[:axis], before, *sizes[axis + 1 :]))
            if after:
                yield Box(
                    (*offsets[:axis], start + count, *offsets[axis + 1 :]),
                    (*sizes[:axis], after, *sizes[axis + 1 :]),
                )
            offsets[axis], sizes[axis] = start, count

    def relative_to(self, other: Box) -> Box:
        """The same part by its offsets in a box around it."""
        offsets = tuple(a - b for a, b in zip(self.offsets, other.offsets, strict=True))
        return Box(offsets, self.sizes)

    def __str__(self) -> str:
        """As Python writes the indices of such a part, such as ``[0:4, 2:3]``."""
        spans = (
            f"{start}:{start + count}"
            for start, count in zip(self.offsets, self.sizes, strict=True)
        )
        return f"[{', '.join(spans)}]"


@dataclass(frozen=True, slots=True)
class LocalBox:
    """A box, and where it is in the local tensor of its rank."""

    box: Box
    #: The same sizes at the offsets in the local tensor.
    local: Box


def _shard(runs: Sequence[Run], count: int, place: int) -> list[Run]:
    """The part that one of ``count`` processes gets of some indices: all parts but the last ones
    are equally long, as ``torch.chunk`` makes them."""
    extent = sum(length for _, length in runs)
    block = -(-extent // count)
    first, end = min(block * place, extent), min(block * (place + 1), extent)
    found, passed = [], 0
    for start, length in runs:
        low, high = max(first - passed, 0), min(end - passed, length)
        if low < high:
            found.append((start + low, high - low))
        passed += length
    return found


def _strided_shard(runs: Sequence[Run], factor: int, count: int, place: int) -> list[Run]:
    """The same when others will divide the indices into ``factor`` parts, and each of these parts
    is divided: what FSDP gets of a tensor that tensor parallelism has divided first."""
    parts = (_shard(runs, factor, index) for index in range(factor))
    return [run for part in parts for run in _shard(part, count, place)]


def _merged(runs: Iterable[Run]) -> list[Run]:
    """Neighbours that follow each other as one run."""
    merged: list[Run] = []
    for start, length in runs:
        if merged and sum(merged[-1]) == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((start, length))
    return merged


@dataclass(frozen=True, slots=True)
class Placement:
    """How a dimension of a mesh places a tensor, by its text in the state document."""

    #: The dimension of the tensor that is divided; None for replicas.
    axis: int | None
    #: Above 1 for a strided shard.
    factor: int = 1

    @classmethod
    def parsed(cls, text: str) -> Placement:
        """``S(0)``, ``SS(0,2)`` or ``R``. Raises ``ValueError``."""
        kind, _, rest = text.partition("(")
        numbers = [int(item) for item in rest.removesuffix(")").split(",")] if rest else []
        placement = cls(*numbers) if (kind, len(numbers)) in (("S", 1), ("SS", 2)) else None
        if text == "R":
            placement = cls(None)
        if placement is None or placement.factor < 1 or (placement.axis or 0) < 0:
            raise ValueError(f"{text!r} is no placement")
        return placement


def _axis_runs(
    shape: Sequence[int], placements: Sequence[Placement], mesh_shape: Sequence[int],
    coordinate: Sequence[int],
) -> list[list[Run]]:  # fmt: skip
    """For each dimension of a tensor the indices that the process at a coordinate has. The
    dimensions of the mesh divide the tensor from left to right."""
    runs: list[list[Run]] = [[(0, extent)] if extent else [] for extent in shape]
    for placement, count, place in zip(placements, mesh_shape, coordinate, strict=True):
        axis = placement.axis
        if axis is None:
            continue
        if axis >= len(shape):
            raise ValueError(f"dimension {axis} of a tensor with {len(shape)} dimensions")
        runs[axis] = (
            _shard(runs[axis], count, place) if placement.factor == 1
            else _strided_shard(runs[axis], placement.factor, count, place)
        )  # fmt: skip
    return [_merged(axis_runs) for axis_runs in runs]


def local_boxes(
    shape: Sequence[int], placements: Sequence[Placement], mesh_shape: Sequence[int],
    coordinate: Sequence[int],
) -> tuple[tuple[int, ...], list[LocalBox]]:  # fmt: skip
    """The shape of the local tensor at a coordinate of a mesh, and the boxes that it consists of,
    in its order."""
    runs = _axis_runs(shape, placements, mesh_shape, coordinate)
    placed = []
    for axis_runs in runs:
        starts = itertools.accumulate((length for _, length in axis_runs), initial=0)
        placed.append(list(zip(starts, axis_runs, strict=False)))
    found = []
    for combination in itertools.product(*placed):
        sizes = tuple(length for _, (_, length) in combination)
        found.append(
            LocalBox(
                Box(tuple(start for _, (start, _) in combination), sizes),
                Box(tuple(local for local, _ in combination), sizes),
            )
        )
    return tuple(sum(length for _, length in axis_runs) for axis_runs in runs), found


def holders(
    placements: Sequence[Placement], mesh_shape: Sequence[int], ranks: Sequence[int],
    coordinate: Sequence[int],
) -> tuple[int, ...]:  # fmt: skip
    """The ranks that hold the same boxes as the process at a coordinate, itself among them."""
    axes = [
        range(count) if placement.axis is None else (place,)
        for placement, count, place in zip(placements, mesh_shape, coordinate, strict=True)
    ]
    found = []
    for place in itertools.product(*axes):
        index = 0
        for step, count in zip(place, mesh_shape, strict=True):
            index = index * count + step
        found.append(ranks[index])
    return tuple(found)


def uncovered(needed: Box, held: Iterable[Box]) -> list[Box]:
    """The boxes of ``needed`` that are in none of those that are held."""
    left = [needed]
    for box in held:
        remaining: list[Box] = []
        for part in left:
            common = part.within(box)
            remaining += [part] if common is None else part.without(common)
        left = remaining
        if not left:
            break
    return left
