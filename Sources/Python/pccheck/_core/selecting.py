"""Loading from a file: a step that was asked for, or the newest checkpoint that is whole."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta, timezone
from typing import Any

from .._state.comparing import StateMismatch
from .._state.placing import ArrayMemory, Loading
from .._state.stateful import Restorer
from ..errors import CheckpointError, InvalidArgument
from .arguments import step_number
from .engine import wait_staged_everywhere
from .printable import printable
from .reader import CheckpointInfo, Reader

log = logging.getLogger("pccheck")


def load_from(
    path: str,
    reader: Reader,
    step: int | None,
    loading: Loading,
    *,
    sequence_maximum: int = 0,
) -> tuple[CheckpointInfo, Any]:
    """What is asked for, of a step or of the newest checkpoint that is whole.

    Says in the log why a newer checkpoint was passed over.
    """
    teller = _Teller(path, reader)
    try:
        info = reader.select_newest(
            None if step is None else step_number(step), sequence_maximum=sequence_maximum
        )
        while True:
            teller.tell(info)
            try:
                state = _load_selected(path, reader, info, loading)
                loading.rejections = reader.rejections()
                return info, state
            except StateMismatch as mismatch:
                raise loading.mismatch_after_change(mismatch, reader.rejections()) from None
            except CheckpointError as error:
                _locate(error, path, info)
                info = reader.select_next(error)
    except Exception as error:
        teller.tell(None)
        loading.explain(error)
        raise


def _locate(error: CheckpointError, path: str, info: CheckpointInfo) -> None:
    """Says in an error that arose in Python of which checkpoint it is."""
    if not error.code and printable(path) not in str(error):
        error.reword(f"{path}, step {info.step} in slot {info.slot}: {error}")


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


class _Teller:
    """Says in the log, once each, what is damaged and what was passed over."""

    def __init__(self, path: str, reader: Reader) -> None:
        self._path, self._reader = path, reader
        self._told: set[tuple[int, int]] = set()
        self._has_told_damage = False

    def tell(self, found: CheckpointInfo | None) -> None:
        if not self._has_told_damage:
            self._has_told_damage = True
            _tell_damage(self._path, self._reader.report())
        rejections = self._reader.rejections()
        for index, item in enumerate(rejections):
            key = (item["slot"], item["sequence"])
            if key in self._told:
                continue
            self._told.add(key)
            following = [(later["step"], later["sequence"]) for later in rejections[index + 1 :]]
            if found is not None:
                following.append((found.step, found.sequence))
            log.warning(
                "%s: the checkpoint of step %d (sequence %d) cannot be used: %s; %s",
                self._path, item["step"], item["sequence"], item["message"],
                "trying step {} (sequence {})".format(*following[0])
                if following
                else "no older one is left",
            )  # fmt: skip


def _tell_damage(path: str, found: dict[str, Any]) -> None:
    for damage in describe_damage(found):
        log.warning("%s: %s; run pcfsck to see more", path, damage)


def load_parts(
    memory: ArrayMemory,
    restorer: Restorer,
    path: str | os.PathLike[str],
    step: int | None,
    strict: bool,
    parts: dict[str, Any],
) -> CheckpointInfo:
    """Fills live parts from a file that may be open elsewhere for writing; takes no writer lock."""
    if not parts:
        raise InvalidArgument("no parts were given; name them as they were saved, model=model")
    loading = Loading(memory, parts, parts=list(parts), strict=strict)
    wait_staged_everywhere()
    with Reader(path) as reader:
        info, loaded = load_from(os.fspath(path), reader, step, loading)
    with loading.explained():
        restorer.restore_parts(parts, loaded, loading.report)
    log.info("%s", described(os.fspath(path), "loaded", info, loading))
    if loading.report is not None and not loading.report.is_exact:
        log.warning("%s", loading.report)
    return info


def described(path: str, verb: str, info: CheckpointInfo, loading: Loading) -> str:
    """One line on what was loaded, how old it is, and what was passed over."""
    # The clock may have gone back.
    age = max(datetime.now(timezone.utc) - info.completed_at, timedelta())
    passed = "; ".join(
        f"step {item['step']} in slot {item['slot']}: {item['message']}"
        for item in loading.rejections
    )
    return (
        f"{path}: {verb} step {info.step}, saved {timedelta(seconds=round(age.total_seconds()))} "
        "ago" + (f"; passed over {passed}" if passed else "")
    )


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
    """What of a recovery report is damage: slots that cannot be used, and an end that is lost."""
    slots = [
        f"slot {slot['slot']} is {slot['reason']}"
        + (f" ({slot['detail']})" if slot.get("detail") else "")
        for slot in report["slots"]
        if slot["reason"] in _DAMAGE_REASONS
    ]
    if report["has_lost_end"]:
        slots.append("the end of the file is missing; pcfsck -y restores it")
    return slots
