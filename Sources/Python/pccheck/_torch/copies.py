"""Dense copies of host tensors whose values are not their memory: strided, conjugate, negative."""

from __future__ import annotations

from collections import deque

import torch

# Copies begin at multiples of this.
_ALIGNMENT = 512
# An arena is made a little larger than it must be, so that a state that grows finds room.
_ROOM_FRACTION = 16


class Lease:
    """Memory of one save; it goes back when the last entry that holds it is staged."""

    def __init__(self, arenas: Arenas, memory: torch.Tensor) -> None:
        self._arenas = arenas
        self.memory = memory

    def __del__(self) -> None:
        self._arenas.give_back(self.memory)


class Arenas:
    """Memory that is slow to get: kept from save to save."""

    def __init__(self) -> None:
        # Without a lock: a collection inside of `take` may give memory back, in the same thread.
        self._free: deque[torch.Tensor] = deque()

    def take(self, byte_count: int) -> Lease:
        """Memory of at least this size; what is too small is let go."""
        while self._free:
            try:
                memory = self._free.popleft()
            except IndexError:
                # Another thread did so first.
                break
            if memory.nbytes >= byte_count:
                return Lease(self, memory)
        byte_count += byte_count // _ROOM_FRACTION
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            memory = torch.empty(byte_count, dtype=torch.uint8, device="cpu")
        return Lease(self, memory)

    def give_back(self, memory: torch.Tensor) -> None:
        """Called when nobody reads the memory any more."""
        self._free.append(memory)


class Copies:
    """The copies of one save."""

    def __init__(self, arenas: Arenas) -> None:
        self._arenas = arenas
        self._sources: list[torch.Tensor] = []

    def add(self, source: torch.Tensor) -> int:
        """Asks for a copy; its number."""
        self._sources.append(source)
        return len(self._sources) - 1

    def make(self) -> list[tuple[int, Lease]]:
        """Makes all copies; their addresses, and what keeps the memory."""
        sources, self._sources = self._sources, []
        if not sources:
            return []
        offsets, end = [], 0
        for source in sources:
            offsets.append(end)
            end += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        lease = self._arenas.take(end)
        for source, offset in zip(sources, offsets, strict=True):
            part = lease.memory[offset : offset + source.nbytes]
            part.view(source.dtype).view(source.shape).copy_(source)
        start = lease.memory.data_ptr()
        return [(start + offset, lease) for offset in offsets]
