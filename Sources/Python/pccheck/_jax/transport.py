"""The network of a group over the coordination service of JAX: its store of keys, nothing else.

Training has the collectives for themselves: an order that PCcheck changed would be an error there.
So the ranks put what they have into the store that ``jax.distributed`` keeps, rank 0 joins it, and
all of them get the result. Every key is deleted again.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from .._group.transport import bounded, first_line, ranks_text, wait_for
from ..errors import CheckpointError, InvalidArgument, RanksMissing, TransportFailed

_MEETING = "meeting"
# A get that waits looks so often whether it is still wanted.
_GET_SECONDS = 1.0
# What the store may take for the notes of an error's message.
_NOTE_SECONDS = 5.0
_THREAD_NAME = "pccheck-store"
_LATE = "DEADLINE_EXCEEDED"

#: What rank 0 makes of the bytes of all ranks.
_Join: TypeAlias = Callable[[Sequence[bytes]], bytes]

# How many transports this process made: all processes make them in one order.
_made_count = 0


def _coordination() -> Any:
    """What ``jax.distributed`` knows of this job. JAX has no public way to its store."""
    from jax._src import distributed

    return distributed.global_state


def process_count() -> int:
    """How many processes the job has; starts no device."""
    state = _coordination()
    return 1 if state.client is None else int(state.num_processes)


class JaxTransport:
    """A group of the processes that ``jax.distributed`` knows."""

    def __init__(self) -> None:
        global _made_count
        client = _coordination().client
        if client is None:
            raise InvalidArgument(
                "jax.distributed is not initialized; call jax.distributed.initialize() first"
            )
        self.rank: int = jax.process_index()
        self.world_size: int = jax.process_count()
        self._store = _Store(client, f"pccheck/{_made_count}")
        _made_count += 1
        self._channels: dict[str, _Channel] = {}
        self._failure: CheckpointError | None = None
        if not _transports:
            # Now, so that it runs before the shutdown that `initialize` has registered.
            atexit.unregister(_end_all)
            atexit.register(_end_all)
        _transports.add(self)

    def open_channels(self, names: Sequence[str], timeout: float) -> None:
        """Starts the threads of the channels; there is nobody to connect to."""
        for name in names:
            if name not in self._channels:
                channel = _Channel(self._store, name, self.rank, self.world_size)
                self._channels[name] = channel

    # -- the two calls

    def begin_and(self, channel: str, words: Sequence[int]) -> _PendingAnd:
        """Begins a bitwise AND of 64-bit words over all ranks."""
        data = np.array(words, dtype="<u8").tobytes()
        return _PendingAnd(self._channels[channel].begin(data, _joined_by_and))

    def gather(
        self, data: bytes, timeout: float | None, channel: str | None = None
    ) -> list[bytes]:
        """The bytes that each rank passed; names the ranks that do not arrive in time."""
        if channel is not None:
            call = self._channels[channel].begin(data, _packed)
            call.wait(None)
            return _unpacked(call.result())
        assert timeout is not None
        if self._failure is not None:
            raise self._failure
        self.open_channels([_MEETING], timeout)
        try:
            call = self._channels[_MEETING].begin(data, _packed)
            if not call.wait(timeout):
                raise self._missing(call, timeout)
            return _unpacked(call.result())
        except (RanksMissing, TransportFailed) as error:
            # The others may have continued: from here on, the calls of the ranks do not match.
            self._failure = error
            raise

    def _missing(self, call: _Call, timeout: float) -> CheckpointError:
        try:
            found = bounded(
                lambda: self._store.values(call.place), _NOTE_SECONDS, "to ask the store"
            )
        except CheckpointError as error:
            return TransportFailed(
                f"the coordination service of JAX does not answer, which process 0 serves: {error}"
            )
        missing = [rank for rank in range(self.world_size) if str(rank) not in found]
        if not missing:
            return TransportFailed(
                f"rank 0 did not join what all {self.world_size} ranks gave it in {timeout:g} s; "
                "look whether it runs, and what it waits for"
            )
        return RanksMissing(
            f"{ranks_text(missing)} of {self.world_size} did not arrive in {timeout:g} s, and the "
            "restart needs all of them; look whether they run, and what they wait for",
            ranks=missing,
        )

    # -- notes

    def post(self, topic: str, number: int) -> None:
        """Leaves a note in the store."""
        key, note = f"note/{topic.split('/')[0]}/{self.rank}", f"{topic} {number}"
        try:
            bounded(
                lambda: self._store.put(key, note.encode()), _NOTE_SECONDS, "to leave a note"
            )
        except CheckpointError:
            # Only a message would have been better.
            return

    def posted(self, topic: str) -> list[int | None]:
        """The notes of all ranks; one on another topic has been replaced by none."""
        head = f"note/{topic.split('/')[0]}"
        try:
            found = bounded(
                lambda: self._store.values(head), _NOTE_SECONDS, "to read the notes"
            )
        except CheckpointError:
            return [None] * self.world_size
        notes = [found.get(str(rank), b"").decode().split() for rank in range(self.world_size)]
        return [int(note[1]) if note and note[0] == topic else None for note in notes]

    # -- the end

    def close(self, seconds: float = 0.0) -> None:
        """Ends the threads. The last rank that closes deletes what is left in the store."""
        if self._store.is_closed:
            return
        self.stop()

        def tidy() -> None:
            self._store.put(f"closed/{self.rank}", b"")
            if len(self._store.values("closed")) == self.world_size:
                self._store.delete("")

        try:
            bounded(tidy, _NOTE_SECONDS, "to delete what is left in the store")
        except CheckpointError:
            # The job ends, and its store with it.
            return

    def stop(self) -> None:
        """Ends the threads, soon."""
        self._store.is_closed = True
        for channel in self._channels.values():
            channel.end()

    def __del__(self) -> None:
        # Not in the middle of a constructor that failed.
        if hasattr(self, "_channels"):
            self.stop()


class _Store:
    """The keys of one transport in the store of the job."""

    def __init__(self, client: Any, prefix: str) -> None:
        self._client, self._prefix = client, prefix
        #: Whether waits are to end.
        self.is_closed = False

    def put(self, key: str, value: bytes) -> None:
        """Stores a value, also in place of another one."""
        try:
            self._client.key_value_set_bytes(f"{self._prefix}/{key}", value, True)
        except RuntimeError as error:
            raise _failed(error) from None

    def get(self, key: str) -> bytes:
        """Waits until there is a value."""
        while not self.is_closed:
            try:
                found: bytes = self._client.blocking_key_value_get_bytes(
                    f"{self._prefix}/{key}", round(_GET_SECONDS * 1e3)
                )
                return found
            except RuntimeError as error:
                if _LATE not in str(error):
                    raise _failed(error) from None
        raise TransportFailed("the checkpointer was closed while another rank was late")

    def values(self, folder: str) -> dict[str, bytes]:
        """The values in a folder, by the last part of their keys."""
        try:
            found = self._client.key_value_dir_get_bytes(f"{self._prefix}/{folder}/")
        except RuntimeError as error:
            raise _failed(error) from None
        return {key.rsplit("/", 1)[1]: value for key, value in found}

    def delete(self, folder: str) -> None:
        """Deletes a folder, if there is one."""
        try:
            self._client.key_value_delete(f"{self._prefix}/{folder}".rstrip("/"))
        except RuntimeError as error:
            raise _failed(error) from None


def _failed(error: RuntimeError) -> TransportFailed:
    return TransportFailed(
        f"the ranks cannot reach each other any more (coordination service of JAX: "
        f"{first_line(error)}); process 0 died, or its network"
    )


class _Call:
    """One call of a rank on a channel."""

    def __init__(self, place: str, data: bytes, join: _Join) -> None:
        #: Its folder in the store.
        self.place = place
        self.data, self.join = data, join
        self.ended = threading.Event()
        self.joined = b""
        self.error: TransportFailed | None = None

    def wait(self, timeout: float | None) -> bool:
        """Waits for the end; False when the seconds are over."""
        return wait_for(self.ended, timeout)

    def result(self) -> bytes:
        """What rank 0 made of the bytes of all ranks, once it has ended."""
        if self.error is not None:
            raise TransportFailed(str(self.error))
        return self.joined


class _Channel:
    """Calls in the order in which they are begun. A thread makes them: they wait in C."""

    def __init__(self, store: _Store, name: str, rank: int, world_size: int) -> None:
        self._store, self._name, self._rank, self._world_size = store, name, rank, world_size
        self._count = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=_THREAD_NAME, daemon=True).start()

    def begin(self, data: bytes, join: _Join) -> _Call:
        """Begins the next call, and returns at once."""
        call = _Call(f"{self._name}/{self._count}", data, join)
        self._count += 1
        self._calls.put(call)
        return call

    def end(self) -> None:
        """Ends the thread after the calls that were begun."""
        self._calls.put(None)

    def _run(self) -> None:
        before: str | None = None
        while (call := self._calls.get()) is not None:
            try:
                call.joined = self._make(call, before)
            except TransportFailed as error:
                call.error = error
            except Exception as error:
                call.error = TransportFailed(f"a call on the store failed: {first_line(error)}")
            call.ended.set()
            before = call.place

    def _make(self, call: _Call, before: str | None) -> bytes:
        # Of rank 0 only a sign that it is here.
        self._store.put(f"{call.place}/{self._rank}", call.data if self._rank else b"")
        if self._rank:
            return self._store.get(f"{call.place}/joined")
        others = [self._store.get(f"{call.place}/{rank}") for rank in range(1, self._world_size)]
        joined = call.join([call.data, *others])
        self._store.put(f"{call.place}/joined", joined)
        if before is not None:
            # A rank that makes this call has the result of the call before.
            self._store.delete(before)
        return joined


class _PendingAnd:
    def __init__(self, call: _Call) -> None:
        self._call = call

    def wait(self, timeout: float | None) -> list[int] | None:
        """The joined words; None when the seconds are over."""
        if not self._call.wait(timeout):
            return None
        return [int(word) for word in np.frombuffer(self._call.result(), "<u8")]


def _joined_by_and(given: Sequence[bytes]) -> bytes:
    rows = np.stack([np.frombuffer(data, "<u8") for data in given])
    return bytes(np.bitwise_and.reduce(rows, axis=0).tobytes())


def _packed(given: Sequence[bytes]) -> bytes:
    return b"".join(len(data).to_bytes(8, "little") + data for data in given)


def _unpacked(packed: bytes) -> list[bytes]:
    found, start = [], 0
    while start < len(packed):
        size = int.from_bytes(packed[start : start + 8], "little")
        found.append(packed[start + 8 : start + 8 + size])
        start += 8 + size
    return found


_transports: weakref.WeakSet[JaxTransport] = weakref.WeakSet()


def _end_all() -> None:
    """Before the interpreter ends: it cannot end a thread that waits in C."""
    for transport in list(_transports):
        transport.stop()
    for thread in threading.enumerate():
        if thread.name == _THREAD_NAME:
            thread.join(2 * _GET_SECONDS)
