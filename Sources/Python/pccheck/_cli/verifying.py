"""``verify``: every byte of the checkpoints, and what a resume would load."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._convert.stored import verify
from .._core.damage import describe_damage
from .._core.printable import printable
from .._core.reader import CheckpointInfo, Reader
from ..errors import (
    Busy,
    CheckpointError,
    Corrupt,
    DeviceError,
    NoCheckpoint,
    StateFormatError,
)
from .outcome import Status, print_json, status_of
from .terminal import Output, Progress, byte_text, plural

_LISTED_COUNT = 8
# Behind the word of a verdict.
_INDENT = 11


@dataclass
class Verdict:
    """What came of one checkpoint."""

    info: CheckpointInfo
    failure: str | None = None
    #: Parts of the payload that do not match their digest, from and to.
    ranges: list[tuple[int, int]] = field(default_factory=list)
    #: The tensors that lie there; None when the names are damaged, too.
    tensors: list[str] | None = field(default_factory=list)


def run(options: argparse.Namespace, out: Output, diagnostics: Output) -> Status:
    """Verifies what was asked for; a file that cannot be read does not keep the others from it."""
    progress = Progress(diagnostics, options.quiet)
    status = Status.DONE
    documents = []
    try:
        for path in options.files:
            try:
                with Reader(path, is_forensic=True) as reader:
                    file = _File(path, reader, options.step, progress)
            except (CheckpointError, OSError) as error:
                progress.finish()
                diagnostics.error(error)
                status |= status_of(error)
                continue
            progress.finish()
            status |= file.status
            if options.json:
                documents.append(file.document())
            elif not options.quiet or file.status:
                file.show(out)
    finally:
        progress.finish()
    if options.json:
        print_json(out, "verify", {"files": documents})
    return status


class _File:
    """The verdicts of one file."""

    def __init__(self, path: str, reader: Reader, step: int | None, progress: Progress) -> None:
        self._path = path
        infos = [reader.select_newest(step)] if step is not None else reader.list()
        if not infos and not reader.report()["may_hold_durable"]:
            raise NoCheckpoint(f"{path}: the file holds no checkpoint")
        self._is_all = step is None
        self._verdicts: list[Verdict] = []
        for info in infos:
            verdict = _verdict(reader, info, progress)
            # What a live writer took meanwhile is no more; something newer is there.
            if verdict is not None:
                self._verdicts.append(verdict)
        if infos and not self._verdicts:
            # The writer was faster every time. A search holds what it finds.
            info = reader.select_newest(step)
            self._verdicts.append(_verdict_of_selected(reader, info, progress))
        is_sound = any(verdict.failure is None for verdict in self._verdicts)
        if not is_sound and not reader.report()["may_hold_durable"]:
            raise NoCheckpoint(f"{path}: the file holds no checkpoint that was finished")
        self._slots = describe_damage(reader.report()) if step is None else []
        sound = [verdict.info for verdict in self._verdicts if verdict.failure is None]
        self._resume = sound[0] if sound else None

    @property
    def status(self) -> Status:
        """Whether anything is damaged."""
        is_damaged = any(verdict.failure for verdict in self._verdicts) or bool(self._slots)
        return Status.DAMAGED if is_damaged or self._resume is None else Status.DONE

    def document(self) -> dict[str, Any]:
        """For programs."""
        resume = self._resume
        return {
            "file": self._path,
            "is_sound": self.status == Status.DONE,
            "checkpoints": [_document(verdict) for verdict in self._verdicts],
            "damaged_slots": self._slots,
            "resume": None if resume is None or not self._is_all else {
                "step": resume.step, "sequence": resume.sequence, "slot": resume.slot,
            },
        }  # fmt: skip

    def show(self, out: Output) -> None:
        """For people."""
        damaged = sum(1 for verdict in self._verdicts if verdict.failure) + len(self._slots)
        if damaged:
            summary = (f"{damaged} of {len(self._verdicts) + len(self._slots)} damaged", "red")
        elif self._verdicts:
            summary = (f"{plural(len(self._verdicts), 'checkpoint')} sound", "green")
        else:
            summary = ("no checkpoint is left", "red")
        out.line((printable(self._path), "bold"), ": ", summary)
        for verdict in self._verdicts:
            _show(verdict, out)
        for slot in self._slots:
            out.paragraph(_INDENT, printable(slot), ("  damaged  ", "red"))
        if not self._is_all:
            return
        if self._resume is None:
            out.line(("  resume   ", "dim"), "finds no checkpoint that is whole; see pcfsck")
        else:
            found = self._resume
            out.line(("  resume   ", "dim"), f"loads step {found.step} from slot {found.slot}")


def _verdict(reader: Reader, info: CheckpointInfo, progress: Progress) -> Verdict | None:
    try:
        reader.select(info.sequence)
    except (Busy, NoCheckpoint):
        return None
    return _verdict_of_selected(reader, info, progress)


def _verdict_of_selected(reader: Reader, info: CheckpointInfo, progress: Progress) -> Verdict:
    try:
        verify(reader, info, progress)
        reader.manifest()
        return Verdict(info)
    except (Corrupt, DeviceError, StateFormatError) as error:
        verdict = Verdict(info, str(error))
    _find_damage(reader, verdict, progress)
    return verdict


def _find_damage(reader: Reader, verdict: Verdict, progress: Progress) -> None:
    """Which chunks do not match, and which tensors have bytes in them."""
    info = verdict.info
    chunk = max(1, int(reader.report()["chunk_byte_count"]))
    buffer = np.empty(min(chunk, info.payload_byte_count), np.uint8)
    for start in range(0, info.payload_byte_count, chunk):
        end = min(start + chunk, info.payload_byte_count)
        progress(f"damage of step {info.step}", start, info.payload_byte_count)
        try:
            reader.read([(start, end - start, buffer.ctypes.data)])
        except (Corrupt, DeviceError):
            verdict.ranges.append((start, end))
    try:
        manifest, data_offset = reader.manifest()
    except CheckpointError:
        verdict.tensors = None
        return
    starts = np.array([start for start, _ in verdict.ranges])
    ends = np.array([end for _, end in verdict.ranges])
    for name, entry in manifest.items():
        if name == "__metadata__":
            continue
        begin, end = (data_offset + offset for offset in entry["data_offsets"])
        if begin < end and bool(np.any((starts < end) & (ends > begin))):
            assert verdict.tensors is not None
            verdict.tensors.append(name)


def _document(verdict: Verdict) -> dict[str, Any]:
    info = verdict.info
    return {
        "step": info.step, "sequence": info.sequence, "slot": info.slot,
        "is_durable": info.is_anchored, "payload_byte_count": info.payload_byte_count,
        "is_sound": verdict.failure is None, "failure": verdict.failure,
        "damaged_ranges": [
            {"payload_offset": start, "byte_count": end - start} for start, end in verdict.ranges
        ],
        "damaged_tensors": verdict.tensors,
    }  # fmt: skip


def _show(verdict: Verdict, out: Output) -> None:
    info = verdict.info
    where = f"step {info.step} in slot {info.slot}, {byte_text(info.payload_byte_count)}"
    if verdict.failure is None:
        state = "" if info.is_anchored else ", complete but not anchored"
        out.line(("  sound    ", "green"), where + state)
        return
    out.line(("  damaged  ", "red"), where)
    out.paragraph(_INDENT, printable(verdict.failure))
    if verdict.tensors is None:
        out.paragraph(_INDENT, "the names of its tensors are lost")
    elif verdict.tensors:
        names = ", ".join(printable(name) for name in verdict.tensors[:_LISTED_COUNT])
        more = len(verdict.tensors) - _LISTED_COUNT
        count = plural(len(verdict.tensors), "tensor")
        out.paragraph(_INDENT, f"{count}: {names}{f' and {more} more' if more > 0 else ''}")
