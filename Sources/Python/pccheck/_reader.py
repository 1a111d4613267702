"""The native reader: lists, selects and loads checkpoints, always verified."""

from __future__ import annotations

import ctypes as c
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from . import _native
from .errors import NoCheckpoint, StateFormatError
from .state import DOCUMENT_KEY, STORED_ITEM_SIZE, Decoder, StoredTensor, parse_document

# A live writer may reuse a slot between listing and selecting; then the list is read anew.
_SELECT_ATTEMPT_COUNT = 5


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


#: Returns an object that owns `byte_count` bytes of aligned memory, and their address.
Allocate = Callable[[int], tuple[Any, int]]


def allocate_array(byte_count: int) -> tuple[np.ndarray, int]:
    """Memory as a uint8 array, aligned to 64 bytes."""
    base = np.empty(byte_count + 64, np.uint8)
    start = -base.ctypes.data % 64
    memory = base[start : start + byte_count]
    return memory, memory.ctypes.data


class Reader:
    """An open native reader; use it as a context manager."""

    def __init__(self, path: str | os.PathLike[str], fingerprint: bytes | None = None) -> None:
        self._library = _native.library()
        self._reader = c.c_void_p()
        options = _native.ReaderOptions(
            struct_size=c.sizeof(_native.ReaderOptions),
            worker_count=min(4, os.cpu_count() or 2),
            fingerprint=fingerprint,
        )
        error = _native.Error()
        status = self._library.pcc_reader_open(
            _native.encode_path(path), c.byref(options), c.byref(self._reader), c.byref(error)
        )
        _native.check(status, error)
        self._process = os.getpid()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Unpins the selected slot and closes the file."""
        reader = getattr(self, "_reader", None)
        if reader and os.getpid() == self._process:
            self._library.pcc_reader_close(reader)
        self._reader = c.c_void_p()

    def list(self) -> list[CheckpointInfo]:
        """The checkpoints that can be loaded, in the order in which recovery tries them."""
        error, count = _native.Error(), c.c_size_t()
        capacity = 128  # more than a file has slots
        infos = (_native.CheckpointInfo * capacity)()
        status = self._library.pcc_reader_list(
            self._reader, infos, capacity, c.byref(count), c.byref(error)
        )
        _native.check(status, error)
        return [_info(row) for row in infos[: min(count.value, capacity)]]

    def report(self) -> dict[str, Any]:
        """What recovery says of the file and of every slot."""
        text, error = c.c_void_p(), _native.Error()
        status = self._library.pcc_reader_report_json(self._reader, c.byref(text), c.byref(error))
        _native.check(status, error)
        report: dict[str, Any] = json.loads(_native.take_text(text))
        return report

    def select(self, sequence: int) -> None:
        """Chooses a checkpoint and pins its slot."""
        info, error = _native.CheckpointInfo(), _native.Error()
        status = self._library.pcc_reader_select(
            self._reader, sequence, c.byref(info), c.byref(error)
        )
        _native.check(status, error)

    def select_step(self, step: int) -> CheckpointInfo:
        """Chooses the newest checkpoint of a step."""
        for attempt in range(_SELECT_ATTEMPT_COUNT):
            infos = self.list()
            for info in infos:
                if info.step != step:
                    continue
                try:
                    self.select(info.sequence)
                    return info
                except NoCheckpoint:
                    if attempt + 1 == _SELECT_ATTEMPT_COUNT:
                        raise
                    break
        held = ", ".join(str(info.step) for info in infos) or "none"
        raise NoCheckpoint(f"the file holds no checkpoint of step {step}; it holds: {held}")

    def verify(self) -> None:
        """Verifies every chunk of the selected checkpoint and its logical digest."""
        error = _native.Error()
        _native.check(self._library.pcc_reader_verify(self._reader, c.byref(error)), error)

    def load(
        self, allocate: Allocate, make_decoder: Callable[[dict[str, StoredTensor]], Decoder]
    ) -> Any:
        """The state of the selected checkpoint, every byte of it verified."""
        manifest, data_offset = self._manifest()
        metadata = manifest.pop("__metadata__", {})
        tensors: dict[str, StoredTensor] = {}
        rows = (_native.Destination * len(manifest))()
        for row, (name, entry) in zip(rows, manifest.items(), strict=True):
            begin, byte_count = _checked_range(name, entry)
            memory, address = allocate(byte_count)
            row.payload_offset = data_offset + begin
            row.byte_count = byte_count
            row.data = address if byte_count else None
            tensors[name] = StoredTensor(name, entry["dtype"], tuple(entry["shape"]), memory)
        error = _native.Error()
        status = self._library.pcc_reader_load(self._reader, rows, len(rows), c.byref(error))
        _native.check(status, error)
        decoder = make_decoder(tensors)
        if DOCUMENT_KEY not in metadata:
            # Written by another program: its tensors are all there is.
            return {name: decoder.decode({"$array": name}) for name in tensors}
        try:
            return decoder.decode(parse_document(metadata[DOCUMENT_KEY]))
        except RecursionError:
            raise StateFormatError("the state document is nested too deeply") from None

    def _manifest(self) -> tuple[dict[str, Any], int]:
        text, offset, error = c.c_void_p(), c.c_uint64(), _native.Error()
        status = self._library.pcc_reader_manifest_json(
            self._reader, c.byref(text), c.byref(offset), c.byref(error)
        )
        _native.check(status, error)
        manifest = json.loads(_native.take_text(text))
        if not isinstance(manifest, dict):
            raise StateFormatError("the manifest is not a JSON object")
        return manifest, offset.value


def _checked_range(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    """Offset and length of a tensor's bytes, checked against its type and shape."""
    begin, end = entry["data_offsets"]
    item_size = STORED_ITEM_SIZE.get(entry["dtype"])
    if item_size is None:
        raise StateFormatError(f"tensor '{name}' has the unknown type {entry['dtype']}")
    expected = item_size
    for extent in entry["shape"]:
        expected *= extent
    if end - begin != expected:
        raise StateFormatError(
            f"tensor '{name}' has {end - begin} bytes; its type and shape take {expected}"
        )
    return begin, expected


def _info(row: _native.CheckpointInfo) -> CheckpointInfo:
    return CheckpointInfo(
        step=row.step,
        sequence=row.sequence,
        slot=row.slot,
        is_anchored=bool(row.is_anchored),
        payload_byte_count=row.payload_byte_count,
        stored_byte_count=row.stored_byte_count,
        completed_at=datetime.fromtimestamp(row.completed_time / 1e9, timezone.utc),
        logical_digest=bytes(row.logical_digest).hex(),
    )
