"""Loading from a file: a step that was asked for, or the newest checkpoint that is whole."""

from __future__ import annotations

import itertools
import logging
import operator
import os
from typing import Any

from ._comparing import StateMismatch
from ._engine import wait_staged_everywhere
from ._loading import ArrayMemory, Loading
from ._reader import CheckpointInfo, Reader
from .errors import Busy, CheckpointError, Corrupt, NoCheckpoint, StateFormatError

log = logging.getLogger("pccheck")

# How often a search starts over when a writer takes a slot under it: tenths of a second.
_ATTEMPT_COUNT = 256


def load_from(
    path: str, reader: Reader, step: int | None, loading: Loading
) -> tuple[CheckpointInfo, Any]:
    """What is asked for, of a step or of the newest checkpoint that is whole."""
    try:
        if step is None:
            return _load_newest(path, reader, loading)
        info = reader.select_step(operator.index(step))
        return info, _load_selected(path, reader, info, loading)
    except CheckpointError as error:
        loading.explain(error)
        raise


def _load_selected(path: str, reader: Reader, info: CheckpointInfo, loading: Loading) -> Any:
    """What is asked for; a mismatch names the checkpoint."""
    try:
        return reader.load(loading)
    except StateMismatch as mismatch:
        report = mismatch.report
        report.path, report.step = path, info.step
        raise StateMismatch(report) from None
    finally:
        if loading.report is not None:
            loading.report.path, loading.report.step = path, info.step


def _load_newest(path: str, reader: Reader, loading: Loading) -> tuple[CheckpointInfo, Any]:
    """Says in the log why a newer checkpoint was passed over."""
    attempts = range(_ATTEMPT_COUNT)
    is_told = False
    found: dict[str, Any] = {}
    for attempt in attempts:
        infos = reader.list()
        found = reader.report()
        if not infos:
            break
        failure: Exception | None = None
        for info, older in itertools.zip_longest(infos, infos[1:]):
            try:
                reader.select(info.sequence)
            except (Busy, NoCheckpoint) as error:
                # A writer took the slot: something newer exists by now.
                failure = error
                if attempt != attempts[-1]:
                    break
                continue
            if not is_told:
                _tell_damage(path, found)
                is_told = True
            try:
                return info, _load_selected(path, reader, info, loading)
            except (Corrupt, StateFormatError) as error:
                failure = error
                log.warning(
                    "%s: the checkpoint of step %d (sequence %d) cannot be used: %s; %s",
                    path, info.step, info.sequence, error,
                    f"trying step {older.step} (sequence {older.sequence})"
                    if older
                    else "no older one is left",
                )  # fmt: skip
        else:
            assert failure is not None
            if isinstance(failure, Corrupt) and not found["may_hold_durable"]:
                # What a crash left of a first checkpoint: nothing that was ever finished.
                text = f"{path}: the file holds no checkpoint that was finished"
                raise NoCheckpoint(text) from failure
            raise failure
    _tell_damage(path, found)
    raise NoCheckpoint(f"{path}: the file holds no checkpoint")


def _tell_damage(path: str, found: dict[str, Any]) -> None:
    for damage in describe_damage(found):
        log.warning("%s: %s; run pcfsck to see more", path, damage)


def loading_of(memory: ArrayMemory, into: Any, tensor: str | None = None) -> Loading:
    """A request for everything, or for one tensor; None is no target."""
    if into is None:
        return Loading(memory, tensor=tensor)
    return Loading(memory, into, tensor=tensor)


def load_with(
    memory: ArrayMemory, path: str | os.PathLike[str], step: int | None, into: Any,
    tensor: str | None = None,
) -> Any:
    """Loads from a file that may be open elsewhere for writing; takes no writer lock."""
    if into is not None:
        wait_staged_everywhere()
    with Reader(path) as reader:
        return load_from(os.fspath(path), reader, step, loading_of(memory, into, tensor))[1]


def damaged_slots(path: str, fingerprint: bytes | None) -> list[str]:
    """None in a file that never held a durable checkpoint: a crash tears what is not finished."""
    with Reader(path, fingerprint) as reader:
        found = reader.report()
    return describe_damage(found) if found["may_hold_durable"] else []


# Reasons of a recovery report that say a slot is damaged, rather than unused or torn by a crash.
_DAMAGE_REASONS = {
    "header-damaged", "table-damaged", "payload-damaged", "foreign", "misdirected", "unreadable",
}  # fmt: skip


def describe_damage(report: dict[str, Any]) -> list[str]:
    """The slots of a recovery report that cannot be used because they are damaged."""
    return [
        f"slot {slot['slot']} is {slot['reason']}"
        + (f" ({slot['detail']})" if slot.get("detail") else "")
        for slot in report["slots"]
        if slot["reason"] in _DAMAGE_REASONS
    ]
