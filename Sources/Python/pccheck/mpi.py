"""The network of a group over MPI, for jobs that mpi4py connects.

    transport = pccheck.mpi.MpiTransport()
    ckpt = pccheck.distributed.Checkpointer("run/", transport=transport)

Training has its communicators for itself: PCcheck duplicates the one that you pass. MPI must be
initialized for calls of several threads, as mpi4py does.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    from mpi4py import MPI
except ImportError as error:
    raise ImportError("pccheck.mpi needs the package mpi4py: pip install 'pccheck[mpi]'") from error

from ._group.transport import first_line, ranks_text, wait_for
from .errors import CheckpointError, InvalidArgument, RanksMissing, TransportFailed

__all__ = ["MpiTransport"]

_MEETING, _NOTES = "meeting", "notes"
# The tags of messages from one rank to another; every channel has an order of its own.
_TAGS = {_MEETING: 1, _NOTES: 2, "ends": 3, "calls": 4}
# Nonblocking collectives of one communicator have one order on all ranks.
_CHANNELS = ("ends", "calls")
# How long MPI is left alone between two looks: more when nothing comes.
_LEAST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0005, 0.02
_THREAD_NAME = "pccheck-mpi"
_EXIT_SECONDS = 2.0


class MpiTransport:
    """A group of the processes of a communicator."""

    def __init__(self, comm: Any = None) -> None:
        """Collective over ``comm``, by default ``MPI.COMM_WORLD``; waits for no other rank."""
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise InvalidArgument(
                "MPI was initialized for fewer threads than PCcheck uses; leave "
                "mpi4py.rc.thread_level at 'multiple', and build MPI with threads"
            )
        comm = MPI.COMM_WORLD if comm is None else comm
        self.rank: int = comm.Get_rank()
        self.world_size: int = comm.Get_size()
        self._progress = _Progress()
        self._comms: dict[str, Any] = {}
        self._made: list[_Request] = []
        for name in (_MEETING, *_CHANNELS):
            self._comms[name], request = comm.Idup()
            self._made.append(self._progress.add(request))
        self._notes: dict[tuple[int, str], tuple[str, int]] = {}
        self._failure: CheckpointError | None = None
        self._is_closed = False
        if not _transports:
            atexit.register(_end_all)
        _transports.add(self)

    def open_channels(self, names: Sequence[str], timeout: float) -> None:
        """Waits until the communicators are made, which needs every rank."""
        deadline = time.monotonic() + timeout
        for request in self._made:
            if not request.wait(max(0.0, deadline - time.monotonic())):
                raise RanksMissing(
                    f"some of {self.world_size} ranks made no MpiTransport in {timeout:g} s; look "
                    "whether they run, and what they wait for",
                    ranks=[],
                )
        self._made = []

    # -- the two calls

    def begin_and(self, channel: str, words: Sequence[int]) -> _PendingAnd:
        """Begins a bitwise AND of 64-bit words over all ranks."""
        own, joined = np.array(words, np.uint64), np.empty(len(words), np.uint64)
        try:
            request = self._comms[channel].Iallreduce(own, joined, MPI.BAND)
        except MPI.Exception as error:
            raise _failed(error) from None
        return _PendingAnd(self._progress.add(request, own), joined)

    def gather(
        self, data: bytes, timeout: float | None, channel: str | None = None
    ) -> list[bytes]:
        """The bytes that each rank passed; names the ranks that do not arrive in time."""
        if channel is not None:
            return self._gather(_TAGS[channel], data, None)
        assert timeout is not None
        if self._failure is not None:
            raise self._failure
        try:
            self.open_channels((), timeout)
            return self._gather(_TAGS[_MEETING], data, timeout)
        except (RanksMissing, TransportFailed) as error:
            # The others may have continued: from here on, the calls of the ranks do not match.
            self._failure = error
            raise

    def _gather(self, tag: int, data: bytes, timeout: float | None) -> list[bytes]:
        deadline = None if timeout is None else time.monotonic() + timeout
        found = {self.rank: data}
        try:
            self._send(tag, data)
            pause = _LEAST_PAUSE_SECONDS
            while missing := [rank for rank in range(self.world_size) if rank not in found]:
                if deadline is not None and time.monotonic() >= deadline:
                    raise RanksMissing(
                        f"{ranks_text(missing)} of {self.world_size} did not arrive in "
                        f"{timeout:g} s, and the restart needs all of them; look whether they run, "
                        "and what they wait for",
                        ranks=missing,
                    )
                if self._is_closed:
                    raise TransportFailed("the checkpointer was closed while a rank was late")
                arrived = {rank: self._received(rank, tag) for rank in missing}
                found.update({rank: got[1] for rank, got in arrived.items() if got is not None})
                if any(arrived.values()):
                    pause = _LEAST_PAUSE_SECONDS
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except MPI.Exception as error:
            raise _failed(error) from None
        return [found[rank] for rank in range(self.world_size)]

    def _send(self, tag: int, data: bytes) -> None:
        buffer = bytearray(data)
        for rank in range(self.world_size):
            if rank != self.rank:
                request = self._comms[_MEETING].Isend([buffer, MPI.BYTE], rank, tag)
                self._progress.add(request, buffer)

    def _received(self, source: int, tag: int) -> tuple[int, bytes] | None:
        """The next message with its sender; None when there is none yet."""
        status = MPI.Status()
        message = self._comms[_MEETING].Improbe(source, tag, status)
        if message is None:
            return None
        buffer = bytearray(status.Get_count(MPI.BYTE))
        message.Recv([buffer, MPI.BYTE])
        return status.Get_source(), bytes(buffer)

    # -- notes

    def post(self, topic: str, number: int) -> None:
        """Sends a note to all ranks."""
        self._notes[self.rank, topic.split("/")[0]] = topic, number
        try:
            self._send(_TAGS[_NOTES], f"{topic} {number}".encode())
        except MPI.Exception:
            # Only a message would have been better.
            return

    def posted(self, topic: str) -> list[int | None]:
        """The notes of all ranks that have arrived."""
        try:
            while (got := self._received(MPI.ANY_SOURCE, _TAGS[_NOTES])) is not None:
                about, number = got[1].decode().split()
                self._notes[got[0], about.split("/")[0]] = about, int(number)
        except MPI.Exception:
            return [None] * self.world_size
        head = topic.split("/")[0]
        notes = [self._notes.get((rank, head), ("", 0)) for rank in range(self.world_size)]
        return [number if about == topic else None for about, number in notes]

    # -- the end

    def close(self, seconds: float = 0.0) -> None:
        """Ends the thread once what it has sent has arrived. It never waits for another rank."""
        self._is_closed = True
        self._progress.end()


class _Request:
    """Something that MPI has under way."""

    def __init__(self, request: Any, memory: Any) -> None:
        # MPI reads or writes the memory until the end.
        self.request, self.memory = request, memory
        self.ended = threading.Event()
        self.error: TransportFailed | None = None

    def test(self) -> bool:
        """Looks whether it has ended, which lets MPI continue with it."""
        try:
            if not self.request.Test():
                return False
        except MPI.Exception as error:
            self.error = _failed(error)
        self.ended.set()
        return True

    def wait(self, timeout: float | None) -> bool:
        """Waits for the end; False when the seconds are over."""
        if not wait_for(self.ended, timeout):
            return False
        if self.error is not None:
            raise TransportFailed(str(self.error))
        return True


class _Progress:
    """A thread that tests requests until they end: MPI works on them only in calls."""

    def __init__(self) -> None:
        self._requests: list[_Request] = []
        self._changed = threading.Condition()
        self._is_ended = False
        threading.Thread(target=self._run, name=_THREAD_NAME, daemon=True).start()

    def add(self, request: Any, memory: Any = None) -> _Request:
        """Takes a request until its end."""
        added = _Request(request, memory)
        with self._changed:
            self._requests.append(added)
            self._changed.notify_all()
        return added

    def end(self) -> None:
        """Ends the thread after the last request."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        pause = _LEAST_PAUSE_SECONDS
        while True:
            with self._changed:
                while not self._requests and not self._is_ended:
                    self._changed.wait()
                    pause = _LEAST_PAUSE_SECONDS
                requests = list(self._requests)
            if not requests:
                return
            done = [request for request in requests if request.test()]
            with self._changed:
                self._requests = [item for item in self._requests if item not in done]
            time.sleep(pause)
            pause = _LEAST_PAUSE_SECONDS if done else min(2 * pause, _LONGEST_PAUSE_SECONDS)


class _PendingAnd:
    def __init__(self, request: _Request, joined: np.ndarray) -> None:
        self._request, self._joined = request, joined

    def wait(self, timeout: float | None) -> list[int] | None:
        """The joined words; None when the seconds are over."""
        if not self._request.wait(timeout):
            return None
        return [int(word) for word in self._joined]


def _failed(error: Exception) -> TransportFailed:
    return TransportFailed(
        f"the ranks cannot reach each other any more (MPI: {first_line(error)}); a rank died, or "
        "its network"
    )


_transports: weakref.WeakSet[MpiTransport] = weakref.WeakSet()


def _end_all() -> None:
    """Before mpi4py ends MPI: no thread may call it after that."""
    for transport in list(_transports):
        transport.close()
    for thread in threading.enumerate():
        if thread.name == _THREAD_NAME:
            thread.join(_EXIT_SECONDS)
