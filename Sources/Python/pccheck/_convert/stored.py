"""One checkpoint of a ``.pcc`` file, copied out piece by piece, every byte verified."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from .._comparing import items_of
from .._loading import ArrayMemory, Loading, part_of
from .._reader import CheckpointInfo, Reader
from ..errors import CheckpointError, Corrupt, NoCheckpoint, StateFormatError
from ..state import DOCUMENT_KEY, parse_document
from .leaves import SOURCE_KEY, parse_source

# What is read at once; at least a chunk.
_WINDOW_BYTE_COUNT = 64 << 20
# A live writer may take a slot between listing and selecting; then the list is read anew.
_ATTEMPT_COUNT = 5
_POLL_SECONDS = 0.05

_Result = TypeVar("_Result")
#: Shows how far the work has come: its title, bytes done, bytes in all.
Show = Callable[[str, int, int], None]
Sink = Callable[[memoryview], object]


@dataclass(frozen=True)
class StoredEntry:
    """A tensor of the payload."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    payload_offset: int
    byte_count: int


class Stored:
    """A checkpoint that is selected, and so pinned, in an open reader."""

    def __init__(
        self,
        path: str,
        reader: Reader,
        info: CheckpointInfo,
        show: Show = lambda *_: None,
        *,
        is_copied: bool = True,
    ) -> None:
        """Verifies all of it when it is to be copied and nothing else vouches for it."""
        self.path, self.reader, self.info = path, reader, info
        self._show = show
        manifest, data_offset = reader.manifest()
        self.metadata: dict[str, str] = manifest.pop("__metadata__", {})
        self.tensors = {name: _entry(name, item, data_offset) for name, item in manifest.items()}
        if is_copied and not info.is_anchored:
            # Nothing says that it reached the medium, so a part is good only when all of it is.
            verify(reader, info, show)

    @cached_property
    def document(self) -> Any:
        """The state document; None when another program wrote the checkpoint."""
        text = self.metadata.get(DOCUMENT_KEY)
        return None if text is None else parse_document(text)

    @cached_property
    def source(self) -> dict[str, Any] | None:
        """What it was converted from; None when it was not."""
        text = self.metadata.get(SOURCE_KEY)
        return None if text is None else parse_source(text)

    def tensor(self, name: str) -> StoredEntry:
        """A tensor that a document names."""
        found = self.tensors.get(name)
        if found is None:
            raise StateFormatError(f"the state document names a tensor '{name}' that is not stored")
        return found

    def items(self, node: Any) -> dict[str, Any]:
        """The items of a dictionary's node with texts for keys."""
        try:
            items = items_of(node)
        except (TypeError, ValueError, IndexError, KeyError):
            items = None
        if items is None or any(type(key) is not str for _, key, _ in items):
            raise StateFormatError("the state document has no dictionary of names here")
        return {key: child for _, key, child in items}

    def load_part(self, memory: ArrayMemory, name: str) -> Any:
        """One part of the state."""
        return part_of(self.reader.load(Loading(memory, parts=[name])), name)

    def copy(self, parts: Sequence[tuple[StoredEntry, Sink]]) -> None:
        """Gives each sink the bytes of its tensor in order. Only their chunks are read, each once.

        The tensors come in the order of the payload.
        """
        windows = _Windows(self)
        ordered = sorted(parts, key=lambda part: part[0].payload_offset)
        done, total = 0, sum(tensor.byte_count for tensor, _ in ordered)
        for index, (tensor, sink) in enumerate(ordered):
            offset, end = tensor.payload_offset, tensor.payload_offset + tensor.byte_count
            while offset < end:
                piece = windows.piece(offset, end, (t for t, _ in ordered[index + 1 :]))
                sink(piece)
                offset += piece.nbytes
                done += piece.nbytes
                self._show("writing", done, total)

    def copy_payload(self, sink: Sink) -> None:
        """Gives the sink the whole payload."""
        whole = StoredEntry("payload", "U8", (), 0, self.info.payload_byte_count)
        self.copy([(whole, sink)])


class _Windows:
    """A buffer that holds a run of chunks."""

    def __init__(self, stored: Stored) -> None:
        self._reader = stored.reader
        self._payload_byte_count = stored.info.payload_byte_count
        self._chunk = max(1, int(stored.reader.report()["chunk_byte_count"]))
        limit = max(1, _WINDOW_BYTE_COUNT // self._chunk) * self._chunk
        self._buffer = np.empty(min(limit, self._payload_byte_count), np.uint8)
        self._start = self._end = 0

    def piece(self, offset: int, end: int, next_tensors: Iterator[StoredEntry]) -> memoryview:
        """Bytes from an offset on, as many as there are at hand before ``end``."""
        if not self._start <= offset < self._end:
            self._read(offset, end, next_tensors)
        stop = min(end, self._end)
        return self._buffer.data[offset - self._start : stop - self._start]

    def _read(self, offset: int, end: int, next_tensors: Iterator[StoredEntry]) -> None:
        chunk = self._chunk
        start = offset // chunk * chunk
        limit = min(start + self._buffer.nbytes, self._payload_byte_count)
        stop = -(-end // chunk) * chunk
        for tensor in next_tensors:
            if stop >= limit or tensor.payload_offset > stop:
                break
            stop = max(stop, -(-(tensor.payload_offset + tensor.byte_count) // chunk) * chunk)
        stop = min(stop, limit)
        self._start = self._end = 0
        self._reader.read([(start, stop - start, self._buffer.ctypes.data)])
        self._start, self._end = start, stop


def _entry(name: str, item: dict[str, Any], data_offset: int) -> StoredEntry:
    begin, end = item["data_offsets"]
    return StoredEntry(
        name, item["dtype"], tuple(item["shape"]), data_offset + begin, end - begin
    )


def verify(reader: Reader, info: CheckpointInfo, show: Show) -> None:
    """Verifies the selected checkpoint in full, on another thread so that it can be interrupted."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            reader.verify()
        except BaseException as error:
            failure.append(error)

    # A daemon: when the work is interrupted, the program does not wait for it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    is_done = False
    while not is_done:
        thread.join(_POLL_SECONDS)
        is_done = not thread.is_alive()
        show(f"verifying step {info.step}", reader.verified_byte_count(), info.payload_byte_count)
    if failure:
        raise failure[0]


def with_checkpoint(
    path: str,
    step: int | None,
    work: Callable[[Stored], _Result],
    show: Show,
    warn: Callable[[str], None],
) -> tuple[_Result, bool]:
    """Does the work on a step's checkpoint, or on the newest that is whole.

    Returns what the work did, and whether a newer checkpoint was damaged.
    """
    with Reader(path) as reader:
        if step is not None:
            return work(Stored(path, reader, reader.select_step(step), show)), False
        for attempt in range(_ATTEMPT_COUNT):
            infos = reader.list()
            if not infos:
                raise NoCheckpoint(f"{os.fspath(path)}: the file holds no checkpoint")
            failure: CheckpointError | None = None
            for info in infos:
                try:
                    reader.select(info.sequence)
                    return work(Stored(path, reader, info, show)), failure is not None
                except NoCheckpoint:
                    if attempt + 1 == _ATTEMPT_COUNT:
                        raise
                    break
                except (Corrupt, StateFormatError) as error:
                    failure = error
                    warn(f"step {info.step} (sequence {info.sequence}) cannot be used: {error}")
            else:
                assert failure is not None
                raise failure
    raise NoCheckpoint(f"{path}: a writer took every checkpoint before it could be read")
