"""One run of ``convert``, from its arguments to its exit status."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ..errors import CheckpointError
from . import converting
from .arguments import parse
from .outcome import Status, status_of
from .terminal import Output


def run(arguments: Sequence[str]) -> int:
    """Converts; returns the exit status."""
    out, diagnostics = Output.standard(), Output.diagnostics()
    with _signals_as_interrupts(), warnings.catch_warnings():
        # torch warns of what it does well all the same; what it cannot do is an error.
        warnings.simplefilter("ignore")
        try:
            options = parse(arguments, out, diagnostics)
            if isinstance(options, Status):
                return int(options | out.close())
            status = converting.run(options, out, diagnostics)
        except KeyboardInterrupt:
            diagnostics.line("pccheck: cancelled; nothing was left behind")
            status = Status.CANCELLED
        except (CheckpointError, OSError, MemoryError) as error:
            diagnostics.error(error)
            status = status_of(error)
    return int(status | out.close())


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the work; what cleans up behind it is not disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
