"""What the ranks of a group need of a network: two calls, and notes for messages.

PCcheck has no network code of its own. ``TorchTransport`` uses ``torch.distributed``;
``LocalTransport`` is the world of one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from .._core.arguments import U64_MAXIMUM
from ..errors import CheckpointError, RanksMissing, TransportFailed

_Value = TypeVar("_Value")

# A wait is no longer than this without a look at signals, such as Ctrl-C.
SLICE_SECONDS = 0.1


class PendingAnd(Protocol):
    """An AND over the ranks that is under way."""

    def wait(self, timeout: float | None) -> list[int] | None:
        """The words of all ranks, joined by AND; None when the seconds are over, without harm.

        Raises ``TransportFailed``.
        """
        ...


class Transport(Protocol):
    """The network of a group. Every rank makes the same calls on a channel, in the same order."""

    #: The number of this process in the group, from 0.
    rank: int
    #: The number of processes.
    world_size: int

    def open_channels(self, names: Sequence[str], timeout: float) -> None:
        """Makes channels ready, each with an order of calls of its own; right after a gather."""
        ...

    def begin_and(self, channel: str, words: Sequence[int]) -> PendingAnd:
        """Begins a bitwise AND of 64-bit words over all ranks, and returns at once.

        It is bounded by nothing: a rank that is late is no error. Raises ``TransportFailed``.
        """
        ...

    def gather(
        self, data: bytes, timeout: float | None, channel: str | None = None
    ) -> list[bytes]:
        """The bytes that each rank passed, by rank.

        Raises ``RanksMissing`` with the ranks that did not arrive in so many seconds, and
        ``TransportFailed``. With a ``channel`` and no timeout it has its place in the order of
        that channel, and waits as ``begin_and`` does.
        """
        ...

    def post(self, topic: str, number: int) -> None:
        """Leaves a note for messages: how far this rank has come. It never waits or raises."""
        ...

    def posted(self, topic: str) -> list[int | None]:
        """The newest note of each rank; None where there is none. Takes some seconds at most."""
        ...

    def close(self, seconds: float = 0.0) -> None:
        """Gives its connections back.

        Where that could end a call of another rank, it first waits for all ranks to close, as
        many seconds at most.
        """
        ...


class _Done:
    def __init__(self, words: Sequence[int]) -> None:
        self._words = list(words)

    def wait(self, timeout: float | None) -> list[int] | None:
        return self._words


class LocalTransport:
    """A group of one process."""

    rank = 0
    world_size = 1

    def open_channels(self, names: Sequence[str], timeout: float) -> None:
        """There is nobody to connect to."""

    def begin_and(self, channel: str, words: Sequence[int]) -> PendingAnd:
        """The words themselves."""
        return _Done([word & U64_MAXIMUM for word in words])

    def gather(
        self, data: bytes, timeout: float | None, channel: str | None = None
    ) -> list[bytes]:
        """The bytes themselves."""
        return [data]

    def post(self, topic: str, number: int) -> None:
        """Nobody reads it."""

    def posted(self, topic: str) -> list[int | None]:
        """This rank is never late for itself."""
        return [None]

    def close(self, seconds: float = 0.0) -> None:
        """There is nothing to give back."""


def bounded(call: Callable[[], _Value], timeout: float, what: str) -> _Value:
    """The result of a call that may wait in C without end; meanwhile signals are heard.

    When the time is over the call stays behind in its thread, and ``RanksMissing`` is raised.
    """
    results: list[_Value] = []
    errors: list[Exception] = []
    ended = threading.Event()

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name="pccheck-meet", daemon=True).start()
    if not ended.wait(timeout):
        raise RanksMissing(f"{what} took more than {timeout:g} s", ranks=[])
    if errors:
        error = errors[0]
        if isinstance(error, CheckpointError):
            raise error
        raise TransportFailed(f"{what} failed: {first_line(error)}") from error
    return results[0]


def wait_for(event: threading.Event, timeout: float | None) -> bool:
    """Waits for an event; False when the seconds are over. Signals are heard meanwhile."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not event.is_set():
        left = SLICE_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        event.wait(min(left, SLICE_SECONDS))
    return True


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its traces."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def ranks_text(ranks: Sequence[int]) -> str:
    """``rank 3``, or ``ranks 0, 2 and 5 more``."""
    shown = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def counted_ranks(count: int) -> str:
    """``1 rank``, or ``4 ranks``."""
    return "1 rank" if count == 1 else f"{count} ranks"
