"""The commands of ``python -m pccheck``.

They work on the native library that the package brings; torch is imported only for the formats
that are torch's own.
"""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ..errors import CheckpointError
from . import converting, exporting, listing, verifying
from .arguments import parse
from .outcome import Status, status_of
from .terminal import Output

_COMMANDS = {
    "ls": listing.run,
    "verify": verifying.run,
    "export": exporting.run,
    "convert": converting.run,
}


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status."""
    out, diagnostics = Output.standard(), Output.diagnostics()
    status = Status.DONE
    with _signals_as_interrupts(), warnings.catch_warnings():
        # torch warns of what it does well all the same; what it cannot do is an error.
        warnings.simplefilter("ignore")
        try:
            options = parse(arguments, out, diagnostics)
            if isinstance(options, Status):
                return int(options | out.close())
            status = _COMMANDS[options.command](options, out, diagnostics)
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
