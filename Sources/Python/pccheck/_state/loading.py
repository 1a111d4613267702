"""The walk of a load, from a file to live values, in one direction.

``load_from`` selects a checkpoint and passes over damaged ones. ``load_selected`` compares the
selected one with the live state, finds places for its tensors, reads them, and decodes the rest.
"""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta, timezone
from typing import Any

from .._core.arguments import step_number
from .._core.damage import describe_damage
from .._core.engine import wait_staged_everywhere
from .._core.printable import printable
from .._core.reader import CheckpointInfo, Reader
from ..errors import CheckpointError, InvalidArgument, StateFormatError
from .comparing import StateMismatch
from .manifest import Manifest
from .memory import ArrayMemory
from .reading import read_at_once, read_tensors
from .request import Loading
from .stateful import Restorer

log = logging.getLogger("pccheck")


def load_from(
    path: str,
    reader: Reader,
    step: int | None,
    loading: Loading,
    *,
    sequence_maximum: int = 0,
) -> tuple[CheckpointInfo, Any]:
    """Loads the request from a step or from the newest intact checkpoint.

    Logs why a newer checkpoint was passed over.
    """
    journal = _Journal(path, reader)
    try:
        info = reader.select_newest(
            None if step is None else step_number(step), sequence_maximum=sequence_maximum
        )
        while True:
            journal.note(info)
            try:
                state = _load_named(path, reader, info, loading)
                loading.rejections = reader.rejections()
                return info, state
            except StateMismatch as mismatch:
                raise loading.mismatch_after_change(mismatch, reader.rejections()) from None
            except CheckpointError as error:
                _locate(error, path, info)
                info = reader.select_next(error)
    except Exception as error:
        journal.note(None)
        loading.explain(error)
        raise


def _locate(error: CheckpointError, path: str, info: CheckpointInfo) -> None:
    """Names the checkpoint in an error that arose in Python."""
    if not error.code and printable(path) not in str(error):
        error.reword(f"{path}, step {info.step} in slot {info.slot}: {error}")


def load_selected(reader: Any, loading: Loading, manifest: Any = None) -> Any:
    """Loads the request from the selected checkpoint; every byte that it reads is verified.

    It reads only the chunks that hold something of the request. ``reader`` and ``manifest`` may be
    those of several files that are read as one.
    """
    try:
        manifest = manifest or Manifest(reader)
        loading.objects = manifest.objects
        document = loading.selected(manifest.document)
        tensors = manifest.tensors_of(document)
        compared = loading.compared(document, tensors)
        if compared is not document:
            document, tensors = compared, manifest.tensors_of(compared)
        places = loading.places(document, tensors)
        divided = loading.memory.places_of_divided(document)
        live = {**places, **divided}
        if loading.must_prove(live) and len(reader.list()) > 1:
            reader.verify()
        wanted = read_at_once(loading.memory, document, tensors)
        loading.begin_filling(live, {tensor.name: tensor for tensor in wanted})
        read_tensors(reader, loading.memory, wanted, places)
        loading.memory.read_divided()
        loading.check_refilled(live, tensors)
        made = {place.key: place.value for place in places.values()}
        return loading.memory.decoder(tensors, made).decode(document)
    except RecursionError:
        raise StateFormatError("the state document is nested too deeply") from None


def _load_named(path: str, reader: Reader, info: CheckpointInfo, loading: Loading) -> Any:
    """As ``load_selected``; a mismatch names the checkpoint."""
    try:
        return load_selected(reader, loading)
    except StateMismatch as mismatch:
        report = mismatch.report
        report.path, report.step = path, info.step
        raise StateMismatch(report) from None
    finally:
        if loading.report is not None:
            loading.report.path, loading.report.step = path, info.step


class _Journal:
    """Logs once each what is damaged and what was passed over."""

    def __init__(self, path: str, reader: Reader) -> None:
        self._path, self._reader = path, reader
        self._logged: set[tuple[int, int]] = set()
        self._has_logged_damage = False

    def note(self, found: CheckpointInfo | None) -> None:
        if not self._has_logged_damage:
            self._has_logged_damage = True
            _log_damage(self._path, self._reader.report())
        rejections = self._reader.rejections()
        for index, item in enumerate(rejections):
            key = (item["slot"], item["sequence"])
            if key in self._logged:
                continue
            self._logged.add(key)
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


def _log_damage(path: str, found: dict[str, Any]) -> None:
    for damage in describe_damage(found):
        log.warning("%s: %s; run pcfsck to see more", path, damage)


def load_file(
    path: str | os.PathLike[str], step: int | None, loading: Loading
) -> tuple[CheckpointInfo, Any]:
    """Loads from a file that may be open elsewhere for writing; takes no writer lock."""
    with Reader(path) as reader:
        return load_from(os.fspath(path), reader, step, loading)


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
    info, loaded = load_file(path, step, loading)
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
    return load_file(path, step, loading_of(memory, into, tensor))[1]
