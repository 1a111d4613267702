"""Boxes, and the plan that divides them, without a process."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from pccheck._group.boxes import Box, Placement, holders, local_boxes, uncovered
from pccheck._group.plan import SMALL_BYTE_COUNT, Plan, Replica


def cells(box: Box) -> set[tuple[int, ...]]:
    spans = zip(box.offsets, box.sizes, strict=True)
    return set(itertools.product(*(range(start, start + count) for start, count in spans)))


def some_box(source: random.Random, extents: tuple[int, ...]) -> Box:
    offsets = tuple(source.randrange(extent) for extent in extents)
    limits = zip(extents, offsets, strict=True)
    return Box(offsets, tuple(source.randint(1, extent - start) for extent, start in limits))


def test_a_box_without_a_part_of_it() -> None:
    source = random.Random(1)
    for _ in range(300):
        extents = tuple(source.randint(1, 5) for _ in range(source.randint(0, 3)))
        box, other = some_box(source, extents), some_box(source, extents)
        common = box.within(other)
        assert (cells(common) if common else set()) == cells(box) & cells(other)
        if common is not None:
            rest = list(box.without(common))
            assert sum(item.element_count for item in rest) == len(cells(box) - cells(common))
            assert set().union(*map(cells, rest)) == cells(box) - cells(common)
            assert uncovered(box, [common, *rest]) == [] and uncovered(box, rest) == [common]


def placements_of(source: random.Random, dims: int, mesh: list[int]) -> list[object]:
    """Placements as torch makes them: with tensor parallelism, FSDP's shards are strided."""
    found: list[object] = []
    for index in range(len(mesh)):
        axis = source.randrange(dims)
        kind = source.choice(["S", "R", "SS"])
        later = mesh[index + 1 :]
        if kind == "SS" and later:
            found.append(_StridedShard(axis, split_factor=source.choice([2, *later])))
        else:
            found.append(Replicate() if kind == "R" else Shard(axis))
    return found


def text(placement: object) -> str:
    if isinstance(placement, _StridedShard):
        return f"SS({placement.dim},{placement.split_factor})"
    return f"S({placement.dim})" if isinstance(placement, Shard) else "R"


@pytest.mark.parametrize("seed", range(8))
def test_the_boxes_of_a_placement_are_those_of_torch(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(40):
        shape = [source.randint(0, 9) for _ in range(source.randint(1, 3))]
        mesh = [source.randint(1, 4) for _ in range(source.randint(1, 3))]
        placements = placements_of(source, len(shape), mesh)
        parsed = [Placement.parsed(text(item)) for item in placements]
        full = torch.arange(1, 1 + int(torch.tensor(shape).prod())).view(shape)
        ranks = range(int(torch.tensor(mesh).prod()))
        for rank, coordinate in enumerate(itertools.product(*map(range, mesh))):
            # What torch itself would cut out of the full tensor.
            local = full
            for item, count, place in zip(placements, mesh, coordinate, strict=True):
                if isinstance(item, _StridedShard):
                    parts, _ = item._split_tensor(local, count, with_padding=False)
                    local = parts[place]
                elif isinstance(item, Shard):
                    parts = Shard._custom_chunk(local, count, dim=item.dim)
                    local = parts[place]
            found, boxes = local_boxes(shape, parsed, mesh, coordinate)
            assert list(found) == list(local.shape), (shape, mesh, placements, coordinate)
            made = torch.zeros(found, dtype=full.dtype)
            for item in boxes:
                spans = zip(item.box.offsets, item.box.sizes, strict=True)
                places = zip(item.local.offsets, item.local.sizes, strict=True)
                made[tuple(slice(a, a + n) for a, n in places)] = full[
                    tuple(slice(a, a + n) for a, n in spans)
                ]
            assert torch.equal(made, local), (shape, mesh, placements, coordinate)
            sizes, offsets = _compute_local_shape_and_global_offset(
                tuple(shape), tuple(mesh), list(coordinate), placements  # type: ignore[arg-type]
            )
            assert tuple(sizes) == found
            if boxes:
                assert boxes[0].box.offsets == tuple(offsets)
            alike = holders(parsed, mesh, ranks, coordinate)
            assert rank in alike
            for other, place in enumerate(itertools.product(*map(range, mesh))):
                if other in alike:
                    assert local_boxes(shape, parsed, mesh, place) == (found, boxes)


@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (2, 100_000), (3, 5, 7000), (1, 1000, 64)])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_element_of_a_replica_is_stored_once(shape: tuple[int, ...], count: int) -> None:
    plan = Plan(count)
    divided = plan.divide(Replica(shape, 4))
    boxes = [box for own in divided for box in own]
    assert uncovered(Box.whole(shape), boxes) == [] or not Box.whole(shape).element_count
    total = Box.whole(shape).element_count
    assert sum(box.element_count for box in boxes) == total
    if total * 4 >= SMALL_BYTE_COUNT:
        assert min(plan.byte_counts) > 0.96 * max(plan.byte_counts)
    else:
        assert len(boxes) == bool(total)
    for own in divided:
        assert len(own) <= max(1, 2 * len(shape) - 1)
        for box in own:
            # Contiguous in memory: a part of one dimension, and all of those after it.
            inner = [axis for axis, extent in enumerate(box.sizes) if extent > 1]
            assert box.sizes[inner[0] + 1 :] == shape[inner[0] + 1 :] if inner else True


def test_ranks_store_equally_much() -> None:
    source = random.Random(4)
    plan = Plan(8)
    for _ in range(150):
        plan.divide(Replica((source.choice([1, 7, 768, 50257]), source.choice([1, 768])), 4))
    assert max(plan.byte_counts) < 1.02 * min(plan.byte_counts)
