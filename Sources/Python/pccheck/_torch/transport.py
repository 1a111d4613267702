"""The network of a group over torch.distributed: gloo of our own, and the store of the job.

Training has its communicators for itself: an order of collectives that PCcheck changed would be
an error there. So every channel is a gloo group that only PCcheck knows.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions, PrefixStore
from torch.distributed import distributed_c10d as c10d

from .._core.arguments import U64_MAXIMUM
from ..errors import CheckpointError, InvalidArgument, RanksMissing, TransportFailed
from .._group.transport import bounded, first_line, ranks_text

_MEETING = "meeting"
# A rank that is late is no error: what bounds a wait is the caller who waits.
_WITHOUT_BOUND = timedelta(days=365)
# What the store may take for the notes of an error's message.
_NOTE_SECONDS = 5.0
# Between two looks at the store for the ranks that have not closed yet.
_CLOSED_POLL_SECONDS = 0.02

# How many transports this process made for the same ranks: all of them make them in one order.
_made_counts: dict[tuple[int, ...], int] = {}


class TorchTransport:
    """A group of the processes that ``torch.distributed`` knows."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """``group`` names the ranks, by default all; their training uses it undisturbed."""
        if not dist.is_initialized():
            raise InvalidArgument(
                "torch.distributed has no process group yet; call init_process_group() first"
            )
        ranks = dist.get_process_group_ranks(group or c10d._get_default_group())
        if dist.get_rank() not in ranks:
            raise InvalidArgument(
                f"rank {dist.get_rank()} of the job is not in the process group; open the "
                "checkpointer on the ranks of the group only"
            )
        self.rank = ranks.index(dist.get_rank())
        self.world_size = len(ranks)
        self._process = os.getpid()
        count = _made_counts.get(tuple(ranks), 0)
        _made_counts[tuple(ranks)] = count + 1
        self._store = _own_store(f"pccheck/{'-'.join(map(str, ranks))[:64]}/{count}")
        self._channels: dict[str, Any] = {}
        self._meeting_count = 0
        self._failure: CheckpointError | None = None
        # Of what is under way: a channel cannot be freed before.
        self._last: dict[str, Any] = {}
        _transports.add(self)

    # -- channels

    def open_channels(self, names: Sequence[str], timeout: float) -> None:
        """Makes channels ready; right after a gather, so that every rank is here."""
        for name in names:
            if name not in self._channels:
                make = self._maker(name, timeout)
                self._channels[name] = bounded(make, timeout, f"to connect the channel {name}")

    def _maker(self, name: str, timeout: float) -> Callable[[], Any]:
        store = PrefixStore(f"channel/{name}", self._store)

        def make() -> Any:
            return dist.ProcessGroupGloo(
                store, self.rank, self.world_size, timedelta(seconds=timeout)
            )

        return make

    def _open_channel(self, name: str) -> Any:
        # At the end of the interpreter all are closed, and a save may just end on its own thread.
        if name not in self._channels:
            raise TransportFailed(
                f"this rank has closed its connections to the others ({name}), as it ends; call "
                "close() before, which waits for what the other ranks have under way"
            )
        return self._channels[name]

    # -- the two calls

    def begin_and(self, channel: str, words: Sequence[int]) -> _PendingAnd:
        """Begins a bitwise AND of 64-bit words over all ranks."""
        tensor = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.BAND  # type: ignore[assignment]
        options.timeout = _WITHOUT_BOUND
        try:
            work = self._open_channel(channel).allreduce([tensor], options)
        except RuntimeError as error:
            raise _failed(channel, error) from None
        self._last[channel] = work
        return _PendingAnd(channel, work, tensor)

    def gather(
        self, data: bytes, timeout: float | None, channel: str | None = None
    ) -> list[bytes]:
        """The bytes that each rank passed; names the ranks that do not arrive in time."""
        if channel is not None:
            return self._gather_on(channel, data)
        assert timeout is not None
        if self._failure is not None:
            raise self._failure
        try:
            self._meet(timeout)
            self.open_channels([_MEETING], timeout)
            return bounded(
                lambda: self._gather_on(_MEETING, data), timeout, "to exchange reports"
            )
        except (RanksMissing, TransportFailed) as error:
            # The others may have continued: from here on, the calls of the ranks do not match.
            self._failure = error
            raise

    def _meet(self, timeout: float) -> None:
        """Returns once every rank is here; the store knows who is not."""
        number = self._meeting_count
        self._meeting_count += 1
        keys = [f"meeting/{number}/{rank}" for rank in range(self.world_size)]

        def arrive() -> None:
            self._store.set(keys[self.rank], b"1")
            if number > 1:
                self._store.delete_key(f"meeting/{number - 2}/{self.rank}")
            self._store.wait(keys, timedelta(seconds=timeout))

        try:
            bounded(arrive, timeout + 1, "to meet the other ranks")
        except (RanksMissing, TransportFailed) as error:
            missing = self._missing(keys)
            if missing:
                raise RanksMissing(
                    f"{ranks_text(missing)} of {self.world_size} did not arrive in {timeout:g} s, "
                    "and the restart needs all of them; look whether they run, and what they wait "
                    "for",
                    ranks=missing,
                ) from None
            raise TransportFailed(
                f"the store of torch.distributed does not answer, which rank 0 or the launcher "
                f"serves: {error}"
            ) from None

    def _missing(self, keys: list[str]) -> list[int]:
        try:
            return bounded(
                lambda: [rank for rank, key in enumerate(keys) if not self._store.check([key])],
                _NOTE_SECONDS, "to ask the store",
            )  # fmt: skip
        except CheckpointError:
            return []

    def _gather_on(self, channel: str, data: bytes) -> list[bytes]:
        counts = self._all_gather(channel, torch.tensor([len(data)], dtype=torch.int64))
        sizes = [int(count.item()) for count in counts]
        padded = np.zeros(max(1, *sizes), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = self._all_gather(channel, torch.from_numpy(padded))
        return [
            row.numpy()[:size].tobytes() for row, size in zip(rows, sizes, strict=True)
        ]

    def _all_gather(self, channel: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(tensor) for _ in range(self.world_size)]
        options = AllgatherOptions()
        options.timeout = _WITHOUT_BOUND
        try:
            work = self._open_channel(channel).allgather([rows], [tensor], options)
            self._last[channel] = work
            work.wait()
        except RuntimeError as error:
            raise _failed(channel, error) from None
        return rows

    # -- notes

    def post(self, topic: str, number: int) -> None:
        """Leaves a note in the store."""
        try:
            bounded(
                lambda: self._store.set(f"note/{topic}/{self.rank}", str(number)),
                _NOTE_SECONDS, "to leave a note",
            )  # fmt: skip
        except CheckpointError:
            # Only a message would have been better.
            return

    def posted(self, topic: str) -> list[int | None]:
        """The notes of all ranks."""

        def read() -> list[int | None]:
            keys = [f"note/{topic}/{rank}" for rank in range(self.world_size)]
            return [
                int(self._store.get(key)) if self._store.check([key]) else None for key in keys
            ]

        try:
            return bounded(read, _NOTE_SECONDS, "to read the notes")
        except CheckpointError:
            return [None] * self.world_size

    # -- the end

    def close(self, seconds: float = 0.0) -> None:
        """Closes the connections, unless a call is under way on one of them.

        A call that has ended here may still be under way on another rank, which a closed
        connection would end: for so many seconds it waits until every rank closes.

        gloo joins its threads when a group is freed, and one of them may wait for a rank that is
        gone. Such a group stays until the process ends.
        """
        if seconds > 0 and self._channels:
            self._await_others(seconds)
        channels, self._channels = self._channels, {}
        for name, channel in channels.items():
            work = self._last.get(name)
            if os.getpid() != self._process or (work is not None and not work.is_completed()):
                _keep_for_ever(channel)
        self._last = {}

    def _await_others(self, seconds: float) -> None:
        keys = [f"closed/{rank}" for rank in range(self.world_size)]
        what, end = "to close with the other ranks", time.monotonic() + seconds
        try:
            bounded(lambda: self._store.set(keys[self.rank], b"1"), seconds, what)
            # Not one long wait in C: its thread would outlive an interrupt of this call, and abort
            # the process when it wakes up while the interpreter ends.
            while (left := end - time.monotonic()) > 0:
                if bounded(lambda: self._store.check(keys), left, what):
                    return
                time.sleep(min(left, _CLOSED_POLL_SECONDS))
        except (CheckpointError, RuntimeError):
            # One has gone already, perhaps with the store, or it comes later. Or the interpreter
            # ends, and begins no thread any more.
            return

    def __del__(self) -> None:
        self.close()


class _PendingAnd:
    def __init__(self, channel: str, work: Any, tensor: torch.Tensor) -> None:
        self._channel, self._work, self._tensor = channel, work, tensor

    def wait(self, timeout: float | None) -> list[int] | None:
        """The joined words; None when the seconds are over."""
        try:
            if timeout is None:
                self._work.wait()
            elif not self._work.is_completed():
                self._work.wait(timedelta(seconds=timeout))
            else:
                # Raises what went wrong.
                self._work.wait()
        except RuntimeError as error:
            if not self._work.is_completed():
                return None
            raise _failed(self._channel, error) from None
        return [int(word) & U64_MAXIMUM for word in self._tensor.tolist()]


def _failed(channel: str, error: RuntimeError) -> TransportFailed:
    return TransportFailed(
        f"the ranks cannot reach each other any more ({channel}: {first_line(error)}); a rank "
        "died, or its network"
    )


def _own_store(prefix: str) -> Any:
    """The store of the job, over a connection of its own where torch can make one."""
    store: Any = c10d._get_default_store()
    try:
        store = store.clone()
    except (AttributeError, RuntimeError):
        # An older torch, or a kind of store without connections.
        pass
    return PrefixStore(prefix, store)


def _keep_for_ever(value: Any) -> None:
    """Not even the end of the interpreter frees it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


_transports: weakref.WeakSet[TorchTransport] = weakref.WeakSet()


def _forget_in_child() -> None:
    """The threads of these groups exist in the parent only."""
    for transport in list(_transports):
        for channel in transport._channels.values():
            _keep_for_ever(channel)


def _close_all() -> None:
    """Before the interpreter ends: gloo's threads cannot end with it."""
    for transport in list(_transports):
        transport.close()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(_close_all)
