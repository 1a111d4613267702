"""``ls``: the checkpoints of files, and the tensors of one."""

from __future__ import annotations

import argparse
import time
from typing import Any

from .._convert.stored import Stored, StoredEntry
from .._core.damage import describe_damage
from .._core.printable import printable
from .._core.reader import CheckpointInfo, Reader
from ..errors import CheckpointError
from .outcome import Status, print_json, status_of
from .terminal import Output, age_text, byte_text, plural


def run(options: argparse.Namespace, out: Output, diagnostics: Output) -> Status:
    """Lists what was asked for; a file that cannot be read does not keep the others from it."""
    status = Status.DONE
    documents = []
    for index, path in enumerate(options.files):
        try:
            with Reader(path, is_forensic=True) as reader:
                if options.step is None:
                    listing: Any = _Checkpoints(path, reader)
                else:
                    listing = _Tensors(path, reader, options.step)
        except (CheckpointError, OSError) as error:
            diagnostics.error(error)
            status |= status_of(error)
            continue
        if options.json:
            documents.append(listing.document())
            continue
        if index:
            out.line()
        listing.show(out)
    if options.json:
        print_json(out, "ls", {"files": documents})
    return status


class _Checkpoints:
    """What ls says of a file."""

    def __init__(self, path: str, reader: Reader) -> None:
        self._path = path
        self._infos = reader.list()
        self._report = reader.report()
        self._codecs = {
            (slot["slot"], slot["sequence"]): slot["codec"] for slot in self._report["slots"]
        }

    def _codec(self, info: CheckpointInfo) -> str | None:
        # None when a live writer took the slot between the two looks.
        return self._codecs.get((info.slot, info.sequence))

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "file": self._path, "checkpoints": [
                {
                    "step": info.step, "sequence": info.sequence, "slot": info.slot,
                    "is_durable": info.is_anchored, "codec": self._codec(info),
                    "payload_byte_count": info.payload_byte_count,
                    "stored_byte_count": info.stored_byte_count,
                    "completed_time_nanoseconds": int(info.completed_at.timestamp() * 1e6) * 1000,
                    "logical_digest": info.logical_digest,
                }
                for info in self._infos
            ],
            "damage": describe_damage(self._report), "tensors": None,
        }  # fmt: skip

    def show(self, out: Output) -> None:
        """For people."""
        count = plural(len(self._infos), "checkpoint") if self._infos else "no checkpoint"
        out.line((printable(self._path), "bold"), f": {count}")
        if self._infos:
            now = time.time()
            titles = [">step", ">sequence", ">slot", "state", ">size", ">stored", "codec", "age"]
            out.table(titles, [self._row(info, now) for info in self._infos])
        for damage in describe_damage(self._report):
            out.paragraph(10, printable(damage), ("  damage  ", "red"))

    def _row(self, info: CheckpointInfo, now: float) -> list[Any]:
        state = ("durable", "green") if info.is_anchored else ("complete", "yellow")
        return [
            str(info.step), str(info.sequence), str(info.slot), state,
            byte_text(info.payload_byte_count), byte_text(info.stored_byte_count),
            self._codec(info) or "—", age_text(now - info.completed_at.timestamp()),
        ]  # fmt: skip


class _Tensors:
    """What ls says of one checkpoint."""

    def __init__(self, path: str, reader: Reader, step: int) -> None:
        self._path = path
        self._info = reader.select_newest(step)
        # The names and shapes are all that is read.
        stored = Stored(path, reader, self._info)
        self._tensors = list(stored.tensors.values())

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "file": self._path, "checkpoints": [], "damage": [], "tensors": {
                "step": self._info.step, "sequence": self._info.sequence, "slot": self._info.slot,
                "entries": [
                    {
                        "name": tensor.name, "dtype": tensor.stored_dtype,
                        "shape": list(tensor.shape), "byte_count": tensor.byte_count,
                    }
                    for tensor in self._tensors
                ],
            },
        }  # fmt: skip

    def show(self, out: Output) -> None:
        """For people."""
        total = sum(tensor.byte_count for tensor in self._tensors)
        count = plural(len(self._tensors), "tensor")
        out.line(
            (printable(self._path), "bold"),
            f": step {self._info.step} in slot {self._info.slot}, {count}, {byte_text(total)}",
        )
        if self._tensors:
            out.table(["~name", "type", "shape", ">size"], [_row(t) for t in self._tensors])


def _row(tensor: StoredEntry) -> list[str]:
    shape = " × ".join(map(str, tensor.shape)) or "scalar"
    return [printable(tensor.name), tensor.stored_dtype, shape, byte_text(tensor.byte_count)]
