"""The calls of pccheck.h for a file of a group: attempts, verdicts, and where to continue."""

from __future__ import annotations

import ctypes as c
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import native
from .engine import Engine


@dataclass(frozen=True)
class Base:
    """The group checkpoint that an attempt continues from."""

    attempt: int
    step: int
    #: In the file of this rank; 0 when the checkpoint is in other files.
    sequence: int = 0


def begin_attempt(
    engine: Engine, attempt: int, base: Base | None = None, complete: Sequence[int] = ()
) -> None:
    """Begins an attempt, or continues with it in a file that was opened again; durably.

    ``complete`` are the sequences of older checkpoints that are durable on all ranks, too.
    """
    rows = (c.c_uint64 * len(complete))(*complete)
    options = native.Attempt(
        struct_size=c.sizeof(native.Attempt),
        attempt=attempt,
        complete_sequences=rows,
        complete_count=len(complete),
    )
    if base is not None:
        options.has_base = 1
        options.base_attempt, options.base_step = base.attempt, base.step
        options.base_sequence = base.sequence
    error = native.Error()
    with engine.lock:
        status = native.library().pcc_writer_begin_attempt(
            engine._open_writer(), c.byref(options), c.byref(error)
        )
        native.check(status, error)
        if base is not None:
            engine._last_step = base.step


def decide(engine: Engine, sequence: int, is_complete: bool) -> None:
    """Records what all ranks found out about a durable checkpoint of this attempt."""
    error = native.Error()
    with engine.lock:
        status = native.library().pcc_writer_decide(
            engine._open_writer(), sequence, int(is_complete), c.byref(error)
        )
        native.check(status, error)


def group_decision(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where a group continues, from the reports of its files; see ``pcc_group_decide``."""
    text, error = c.c_void_p(), native.Error()
    given = json.dumps(reports).encode("ascii")
    status = native.library().pcc_group_decide(given, c.byref(text), c.byref(error))
    native.check(status, error)
    found: dict[str, Any] = json.loads(native.take_text(text))
    return found
