"""The native reader: lists, selects and loads checkpoints, always verified."""

from __future__ import annotations

import ctypes as c
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeAlias

import numpy as np

from ..errors import (
    Busy,
    CheckpointError,
    Corrupt,
    DeviceError,
    Forked,
    StateFormatError,
    UnsupportedState,
)
from . import native
from .arguments import step_number
from .tensors import DevicePlace

_Rejections: TypeAlias = list[dict[str, Any]]
# pcc_destination as a row of a NumPy array.
_DESTINATION_ROW = np.dtype(
    [
        ("payload_offset", "<u8"), ("byte_count", "<u8"), ("data", "<u8"),
        ("device", "<u4"), ("ordinal", "<i4"), ("stream", "<u8"),
    ]
)  # fmt: skip
assert c.sizeof(native.Destination) == _DESTINATION_ROW.itemsize


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint in a file."""

    step: int
    sequence: int
    slot: int
    #: Named by the newest superblock, or retained by it.
    is_anchored: bool
    payload_byte_count: int
    stored_byte_count: int
    completed_at: datetime
    #: Digest of the uncompressed payload, whatever the chunk size and codec.
    logical_digest: str
    #: The attempt of the group that saved it; 0 without a group.
    attempt: int = 0


class Reader:
    """An open native reader; use it as a context manager."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        fingerprint: bytes | None = None,
        *,
        is_forensic: bool = False,
        worker_count: int | None = None,
    ) -> None:
        """A forensic reader shows what is left of damaged checkpoints; nothing is resumed from
        what it reads."""
        self._process = os.getpid()
        self._library = native.library()
        self._reader = c.c_void_p()
        # Why checkpoints were passed over, by as much of it as the library has room for.
        self._reasons: dict[str, str] = {}
        options = native.ReaderOptions(
            struct_size=c.sizeof(native.ReaderOptions),
            worker_count=worker_count or min(4, os.cpu_count() or 2),
            fingerprint=fingerprint,
            is_forensic=is_forensic,
        )
        error = native.Error()
        status = self._library.pcc_reader_open(
            native.encode_path(path), c.byref(options), c.byref(self._reader), c.byref(error)
        )
        native.check(status, error)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except BaseException:
            # Interrupted, and nobody calls it again: a pin would stay until the process ends.
            self.close()
            raise

    def close(self) -> None:
        """Unpins the selected slot and closes the file."""
        # It sets the pointer to NULL itself: an interrupt leaves it closed, or to the finalizer.
        reader = getattr(self, "_reader", None)
        if reader and os.getpid() == self._process:
            self._library.pcc_reader_dispose(c.byref(reader))

    def list(self) -> list[CheckpointInfo]:
        """The checkpoints that can be loaded, in the order in which recovery tries them."""
        error, count = native.Error(), c.c_size_t()
        capacity = 128  # more than a file has slots
        infos = (native.CheckpointInfo * capacity)()
        status = self._library.pcc_reader_list(
            self._reader, infos, capacity, c.byref(count), c.byref(error)
        )
        native.check(status, error)
        return [_info(row) for row in infos[: min(count.value, capacity)]]

    def report(self) -> dict[str, Any]:
        """What recovery reports of the file and of every slot."""
        text, error = c.c_void_p(), native.Error()
        status = self._library.pcc_reader_report_json(self._reader, c.byref(text), c.byref(error))
        native.check(status, error)
        report: dict[str, Any] = json.loads(native.take_text(text))
        return report

    def select(self, sequence: int) -> CheckpointInfo:
        """Chooses one checkpoint in particular and pins its slot."""
        return self._select(self._library.pcc_reader_select, sequence)

    def select_newest(
        self, step: int | None = None, *, sequence_maximum: int = 0
    ) -> CheckpointInfo:
        """Chooses the newest checkpoint that fits and that is proven, and pins its slot."""
        options = native.LoadOptions(
            struct_size=c.sizeof(native.LoadOptions),
            has_step=step is not None,
            step=0 if step is None else step_number(step),
            sequence_maximum=sequence_maximum,
        )
        return self._select(self._library.pcc_reader_select_newest, c.byref(options))

    def select_next(self, reason: CheckpointError) -> CheckpointInfo:
        """Chooses the next older one, because of an error that speaks against this one.

        Another error is raised again.
        """
        if not is_rejection(reason):
            raise reason
        code = native.CORRUPT if isinstance(reason, StateFormatError) else reason.code
        full = str(reason)
        cut = full.encode("utf-8", "replace")[: native.MESSAGE_BYTE_COUNT - 1]
        message = cut.decode("utf-8", "ignore")
        self._reasons[message] = full
        given = native.Error(
            code=code, slot=-1, byte_offset=-1, message=message.encode("utf-8")
        )
        try:
            return self._select(self._library.pcc_reader_select_next, c.byref(given))
        except Corrupt as failure:
            if len(self.rejections()) > 1:
                raise failure from reason
        # The only one that fits: its own error explains more than a list of all slots.
        raise reason

    def _select(self, function: Callable[..., int], argument: object) -> CheckpointInfo:
        info, error = native.CheckpointInfo(), native.Error()
        status = function(self._reader, argument, c.byref(info), c.byref(error))
        native.check(status, error)
        return _info(info)

    def rejections(self) -> _Rejections:
        """What the search passed over before the selected checkpoint, newest first."""
        text, error = c.c_void_p(), native.Error()
        status = self._library.pcc_reader_rejections_json(
            self._reader, c.byref(text), c.byref(error)
        )
        native.check(status, error)
        found: _Rejections = json.loads(native.take_text(text))
        for item in found:
            item["message"] = self._reasons.get(item["message"], item["message"])
        return found

    def verify(self) -> None:
        """Verifies every chunk of the selected checkpoint and its logical digest."""
        error = native.Error()
        native.check(self._library.pcc_reader_verify(self._reader, c.byref(error)), error)

    def copy_to(
        self,
        path: str,
        *,
        is_payload: bool = False,
        replace: bool = False,
        allow_network: bool = False,
        is_background: bool = False,
    ) -> None:
        """Copies the selected checkpoint to a new file, verified: a checkpoint file, or its
        payload, which is a safetensors file. The file is there when it is durable.

        With ``is_background`` this thread yields to others from now on.
        """
        options = native.CopyOptions(
            struct_size=c.sizeof(native.CopyOptions), form=int(is_payload),
            replace_existing=replace, allow_network=allow_network, is_background=is_background,
        )  # fmt: skip
        error = native.Error()
        status = self._library.pcc_reader_copy(
            self._reader, native.encode_path(path), c.byref(options), c.byref(error)
        )
        native.check(status, error)

    def cancel(self) -> None:
        """Ends the ``copy_to`` that another thread has under way."""
        self._library.pcc_reader_cancel(self._reader)

    def verified_byte_count(self) -> int:
        """Payload bytes that ``verify`` or ``copy_to`` has come to, for another thread."""
        return int(self._library.pcc_reader_verified_byte_count(self._reader))

    def read(
        self,
        parts: Sequence[tuple[int, int, int]],
        devices: Sequence[DevicePlace | None] = (),
    ) -> None:
        """Reads verified parts of the payload, given by offset, size, and where they go; that is on
        a device where ``devices`` has one for the part."""
        if not parts:
            return
        if os.getpid() != self._process:
            raise Forked("this reader belongs to the parent process; load again in the child")
        rows = np.zeros(len(parts), _DESTINATION_ROW)
        offsets, counts, addresses = zip(*parts, strict=True)
        rows["payload_offset"], rows["byte_count"], rows["data"] = offsets, counts, addresses
        rows["data"][rows["byte_count"] == 0] = 0
        for index, place in enumerate(devices):
            if place is not None:
                row = rows[index]
                row["device"], row["ordinal"] = place.kind, place.ordinal
                row["stream"] = place.stream
        error = native.Error()
        status = self._library.pcc_reader_load(
            self._reader, rows.ctypes.data, len(rows), c.byref(error)
        )
        native.check(status, error)

    def manifest(self) -> tuple[dict[str, Any], int]:
        """The safetensors header of the selected checkpoint, and where its data begins."""
        text, offset, error = c.c_void_p(), c.c_uint64(), native.Error()
        status = self._library.pcc_reader_manifest_json(
            self._reader, c.byref(text), c.byref(offset), c.byref(error)
        )
        native.check(status, error)
        manifest = json.loads(native.take_text(text))
        if not isinstance(manifest, dict):
            raise StateFormatError("the manifest is not a JSON object")
        return manifest, offset.value


def is_rejection(error: CheckpointError) -> bool:
    """True when an error rules a checkpoint out for every caller."""
    if isinstance(error, UnsupportedState):
        return False
    return isinstance(error, (Corrupt, DeviceError, StateFormatError)) or (
        isinstance(error, Busy) and error.code == native.BUSY
    )


def _info(row: native.CheckpointInfo) -> CheckpointInfo:
    return CheckpointInfo(
        step=row.step,
        sequence=row.sequence,
        slot=row.slot,
        is_anchored=bool(row.is_anchored),
        payload_byte_count=row.payload_byte_count,
        stored_byte_count=row.stored_byte_count,
        completed_at=datetime.fromtimestamp(row.completed_time / 1e9, timezone.utc),
        logical_digest=bytes(row.logical_digest).hex(),
        attempt=row.attempt,
    )
