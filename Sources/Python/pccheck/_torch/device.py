"""Tensors on a CUDA device: copied to pinned memory by a stream apart from the one that trains.

    compute stream   … step n │ event          step n+1 …
    side stream               └ waits │ copies │ event
    save()                            enqueues …     └ waits for this event alone, then begins

The copies come after all work that was queued before ``save``, and nothing waits for the whole
device. They take no device memory, unless a tensor is not contiguous. ``save`` returns once they
are in pinned memory, so that the next step may change the tensors; from there the writer's threads
take them. The pinned memory of a save is used again once that save is staged.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Protocol

import torch

log = logging.getLogger("pccheck")

# Copies begin at multiples of this.
_ALIGNMENT = 512
# An arena is made a little larger than it must be, so that a state that grows finds room.
_ROOM_FRACTION = 16


class Streams(Protocol):
    """What the order of copies hangs on; CUDA's, or in a test what stands for it."""

    def handles(self, tensor: torch.Tensor) -> bool:
        """True for tensors that these streams copy."""
        ...

    def allocate(self, byte_count: int) -> torch.Tensor:
        """Host memory that a device can copy to directly."""
        ...

    def follow(self, device: torch.device) -> None:
        """Has the side stream of a device wait for all that is queued for training by now."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queues a copy on the side stream, which keeps the source's memory until then."""
        ...

    def mark(self, device: torch.device) -> Any:
        """An event behind everything that is queued on the side stream."""
        ...

    def wait(self, event: Any) -> None:
        """Blocks the caller, and no stream, until an event has come."""
        ...


class CudaStreams:
    """One side stream for each device."""

    def __init__(self) -> None:
        self._sides: dict[torch.device, torch.cuda.Stream] = {}

    def handles(self, tensor: torch.Tensor) -> bool:
        """Everything on a CUDA device."""
        return tensor.is_cuda

    def allocate(self, byte_count: int) -> torch.Tensor:
        """Pinned memory; ordinary memory, with a word in the log, where that is not available."""
        try:
            return torch.empty(byte_count, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError as error:
            log.warning("%d bytes cannot be pinned, so copies are slower: %s", byte_count, error)
            return torch.empty(byte_count, dtype=torch.uint8, device="cpu")

    def follow(self, device: torch.device) -> None:
        """An event on the current stream, which the side stream waits for."""
        side = self._sides.get(device)
        if side is None:
            side = self._sides[device] = _new_stream(device)
        side.wait_stream(torch.cuda.current_stream(device))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """An asynchronous copy; the allocator learns which stream reads the source."""
        side = self._sides[source.device]
        with torch.cuda.stream(side):
            target.copy_(source, non_blocking=True)
        source.record_stream(side)

    def mark(self, device: torch.device) -> Any:
        """A CUDA event; it yields the processor while it is waited for."""
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._sides[device])
        return event

    def wait(self, event: Any) -> None:
        """Releases the interpreter's lock meanwhile."""
        event.synchronize()


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class HostStreams:
    """What host memory, or a device without streams of its own, needs: a copy, made at once.

    For tensors whose values are not their memory, dense and row-major: views with strides, and
    conjugate or negative ones.
    """

    def handles(self, tensor: torch.Tensor) -> bool:
        """Everything."""
        return True

    def allocate(self, byte_count: int) -> torch.Tensor:
        """Ordinary memory, whatever the default device is."""
        return torch.empty(byte_count, dtype=torch.uint8, device="cpu")

    def follow(self, device: torch.device) -> None:
        """Nothing: there is no queue."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copies the values."""
        target.copy_(source)

    def mark(self, device: torch.device) -> Any:
        """No event."""

    def wait(self, event: Any) -> None:
        """Nothing: what was copied is there."""


class Lease:
    """Memory of one save; it goes back when the last entry that holds it is staged."""

    def __init__(self, arenas: Arenas, memory: torch.Tensor) -> None:
        self._arenas = arenas
        self.memory = memory

    def __del__(self) -> None:
        self._arenas.give_back(self.memory)


class Arenas:
    """Memory that is slow to get, pinned or fresh: kept from save to save."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
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
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            memory = self.streams.allocate(byte_count + byte_count // _ROOM_FRACTION)
        return Lease(self, memory)

    def give_back(self, memory: torch.Tensor) -> None:
        """Called when nobody reads the memory any more."""
        self._free.append(memory)


class Copies:
    """The copies of one save."""

    def __init__(self, arenas: Arenas) -> None:
        self._arenas = arenas
        self._streams = arenas.streams
        self._sources: list[torch.Tensor] = []
        self._events: list[Any] = []

    def handles(self, tensor: torch.Tensor) -> bool:
        """True when `add` accepts the tensor."""
        return self._streams.handles(tensor)

    def add(self, source: torch.Tensor) -> int:
        """Asks for a copy; its number."""
        self._sources.append(source)
        return len(self._sources) - 1

    def begin(self) -> list[tuple[int, Lease]]:
        """Queues all copies; their addresses, and what keeps the memory."""
        if not self._sources:
            return []
        offsets, end = [], 0
        for source in self._sources:
            offsets.append(end)
            end += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
        lease = self._arenas.take(end)
        devices = list(dict.fromkeys(source.device for source in self._sources))
        for device in devices:
            self._streams.follow(device)
        for source, offset in zip(self._sources, offsets, strict=True):
            part = lease.memory[offset : offset + source.nbytes]
            self._streams.copy(part.view(source.dtype).view(source.shape), source)
        self._events = [self._streams.mark(device) for device in devices]
        start = lease.memory.data_ptr()
        return [(start + offset, lease) for offset in offsets]

    def wait(self) -> None:
        """Returns when the copies are in host memory."""
        events, self._events = self._events, []
        for event in events:
            self._streams.wait(event)
