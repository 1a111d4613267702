"""Which part of the arrays of a tree this process stores: spec/STATE.md, "Sharded tensors".

An array with devices of several processes is one array, and each process has some boxes of it. A
box that several processes have is stored once. All other leaves are each process's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._group.boxes import Box
from .._group.claims import Claims, digest_of
from .._group.division import Division, group_metadata, is_split
from .._group.node import ShardedNode
from .._group.plan import Replica, Sharing
from .._state.encoder import Encoder
from .._state.nesting import joined
from .arrays import box_of, holders_of, slices_of
from .device import Devices, OnDevice

#: How many elements of a box are compared between the processes that have it.
_SAMPLE_COUNT = 64


@dataclass(frozen=True)
class Pieces:
    """The parts of an array that this process stores."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    #: The processes that have the array together.
    ranks: tuple[int, ...]
    #: Boxes of the full array, and their values: where they are on a device, or copies.
    parts: tuple[tuple[Box, np.ndarray | OnDevice], ...]


class JaxEncoder(Encoder):
    """Adds arrays that are divided among processes, and arrays that stay on their device."""

    def _encode_on_device(self, value: OnDevice, path: str) -> Any:
        name, tag = self._add_on_device(value, path)
        return {"$array": name, "dtype": tag} if tag else {"$array": name}

    def _add_on_device(self, value: OnDevice, path: str) -> tuple[str, str | None]:
        # What NumPy makes of an array without elements tells how others of its type are stored.
        dtype = np.dtype(value.array.dtype)
        stored, empty, _, tag = self._stored_form(np.empty(0, dtype), path)
        name = self.add(
            stored, (*value.shape, *empty[1:]), value.address, value.byte_count, value.array, path
        )
        self.entries[-1].place = value.place
        return name, tag

    def _encode_pieces(self, value: Pieces, path: str) -> Any:
        boxes = tuple((box, self._encode_part(part, path)) for box, part in value.parts)
        return ShardedNode(value.shape, value.dtype.name, value.ranks, boxes).document()

    def _encode_part(self, part: np.ndarray | OnDevice, path: str) -> Any:
        """As torch stores a part, so that one reader knows both."""
        if isinstance(part, OnDevice):
            dtype = np.dtype(part.array.dtype)
            name, _ = self._add_on_device(part, path)
        else:
            dtype = part.dtype
            stored, shape, words, _ = self._stored_form(part, path)
            name = self.add_array(words, stored, shape, path)
            self.entries[-1].is_copy = True
        return {"$tensor": name, **({"dtype": dtype.name} if dtype.kind == "c" else {})}


JaxEncoder.methods = {
    **Encoder.methods,
    Pieces: JaxEncoder._encode_pieces,
    OnDevice: JaxEncoder._encode_on_device,
}


class _Held:
    """An array that this process has with others, and what it has of it."""

    def __init__(self, path: str, array: jax.Array, devices: Devices) -> None:
        self.path = path
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        processes = holders_of(array.sharding, self.shape)
        self.ranks = tuple(sorted({rank for found in processes.values() for rank in found}))
        shards: dict[Box, Any] = {}
        for shard in array.addressable_shards:
            shards.setdefault(box_of(shard.index, self.shape), shard.data)
        #: Each box that is here, who has it, and the array of a device that holds it.
        self.parts = [
            (box, holders, shards[box]) for box, holders in processes.items() if box in shards
        ]
        self._on_device = {box: OnDevice.of(devices, shards[box]) for box, _, _ in self.parts}

    @property
    def structure(self) -> list[Any]:
        """Changes when the array, its type or its placement does."""
        boxes = [[box.offsets, box.sizes, holders] for box, holders, _ in self.parts]
        return [self.path, self.shape, self.dtype.name, self.ranks, boxes]

    def begin_copies(self, planned: list[list[Box]]) -> None:
        """Lets devices copy to the host what is not read there, all at once."""
        for (box, _, data), boxes in zip(self.parts, planned, strict=True):
            if not all(self._part_on_device(box, part) for part in boxes):
                data.copy_to_host_async()

    def pieces(self, planned: list[list[Box]]) -> Pieces:
        """What is stored of it. The buffers of what is copied may be donated at once."""
        parts: list[tuple[Box, np.ndarray | OnDevice]] = []
        for (box, _, data), boxes in zip(self.parts, planned, strict=True):
            for part in boxes:
                offsets = tuple(a + b for a, b in zip(part.offsets, box.offsets, strict=True))
                values = self._part_on_device(box, part) or np.array(
                    np.asarray(data)[slices_of(part)], order="C"
                )
                parts.append((Box(offsets, part.sizes), values))
        return Pieces(self.shape, self.dtype, self.ranks, tuple(parts))

    def _part_on_device(self, box: Box, part: Box) -> OnDevice | None:
        whole = self._on_device[box]
        return whole and whole.part(part)

    def claim(self, claims: Claims) -> None:
        """What the other processes must have as well."""
        form = f"{self.dtype.name} {self.shape}"
        claims.add(self.path, self.ranks, form)
        for box, holders, data in self.parts:
            if len(holders) > 1:
                claims.add(f"{self.path}{box}", holders, form, self._sample(box, data))

    def _sample(self, box: Box, data: jax.Array) -> bytes:
        """At most 64 elements, equally spaced, of which each is copied alone from a device."""
        if not data.size:
            return b""
        step = max(1, data.size // _SAMPLE_COUNT)
        chosen = np.arange(0, data.size, step)[: _SAMPLE_COUNT + 1]
        values = data if self._on_device[box] else np.asarray(data)
        places = np.unravel_index(chosen, data.shape) if data.shape else ()
        return np.asarray(values[places]).tobytes()


class Layout:
    """Divides the trees of one job, save after save. Talks to no other process."""

    def __init__(self, rank: int, world_size: int, replicas: str, devices: Devices) -> None:
        """With ``replicas="whole"`` every process stores all that it has. What ``devices`` can
        locate is read on its device."""
        self._devices = devices
        self._rank, self._world_size = rank, world_size
        self._replicas, self._is_split = replicas, is_split(replicas)
        self._planned: tuple[bytes, list[list[list[Box]]]] = b"", []

    def divide(self, parts: Mapping[str, Any], name: str, *, sample: bool) -> Division:
        """What this process stores of the parts of a state, of which one is a tree.

        The leaves of the tree are nests of one level at most. All processes that have an array
        come to the same division. ``sample`` makes claims.
        """
        held = [
            _Held(path, array, self._devices) for path, array in self._arrays(parts[name], name)
        ]
        structure = digest_of([[item.structure for item in held], self._is_split])
        if self._planned[0] != structure:
            self._planned = structure, self._plan(held)
        planned = dict(zip((item.path for item in held), self._planned[1], strict=True))
        for item in held:
            item.begin_copies(planned[item.path])
        pieces = {item.path: item.pieces(planned[item.path]) for item in held}
        claims = _claims(held) if sample else None
        return Division(
            {**parts, name: _with_pieces(parts[name], pieces, name)},
            group_metadata(
                self._rank, self._world_size, self._replicas, parts, {name} if held else set(),
                claims,
            ),
            structure, None if claims is None else claims.encoded(), 1.0,
        )  # fmt: skip

    def _arrays(self, value: Any, path: str) -> Iterator[tuple[str, jax.Array]]:
        """The arrays that processes have together, in the order of the tree. One process has all
        of its arrays so: another number of processes may need parts of them."""
        if isinstance(value, dict):
            for key, item in value.items():
                yield from self._arrays(item, joined(path, key))
        elif isinstance(value, jax.Array):
            if self._world_size == 1 or not value.is_fully_addressable:
                yield path, value

    def _plan(self, held: list[_Held]) -> list[list[list[Box]]]:
        """For each array and each of its boxes here the boxes that this process stores."""
        sharing = Sharing(self._rank, is_split=self._is_split)
        return [
            [
                sharing.stored(Replica(box.sizes, item.dtype.itemsize), holders)
                for box, holders, _ in item.parts
            ]
            for item in held
        ]


def _claims(held: list[_Held]) -> Claims:
    claims = Claims()
    for item in held:
        item.claim(claims)
    return claims


def _with_pieces(value: Any, pieces: Mapping[str, Pieces], path: str) -> Any:
    """A nest with pieces in place of what is divided."""
    if isinstance(value, dict):
        return {
            key: _with_pieces(item, pieces, joined(path, key)) for key, item in value.items()
        }
    return pieces.get(path, value)
