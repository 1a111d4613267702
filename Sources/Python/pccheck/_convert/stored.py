"""One checkpoint of a ``.pcc`` file, copied out piece by piece, every byte verified."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from .._core.reader import CheckpointInfo, Reader
from .._state.comparing import items_of
from .._state.loading import load_selected
from .._state.memory import ArrayMemory
from .._state.references import part_of
from .._state.request import Loading
from ..errors import CheckpointError, StateFormatError
from ..state import DOCUMENT_KEY, parse_document
from .leaves import SOURCE_KEY, parse_source

# What is read at once; at least a chunk.
_WINDOW_BYTE_COUNT = 64 << 20
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
    ) -> None:
        self.path, self.reader, self.info = path, reader, info
        self._show = show
        manifest, data_offset = reader.manifest()
        self.metadata: dict[str, str] = manifest.pop("__metadata__", {})
        self.tensors = {name: _entry(name, item, data_offset) for name, item in manifest.items()}

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
        return part_of(load_selected(self.reader, Loading(memory, parts=[name])), name)

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
        """Bytes from an offset on, as many as there are available before ``end``."""
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


def interruptible(
    work: Callable[[], _Result], look: Callable[[], object] = lambda: None
) -> _Result:
    """Work that may take long in the library, on another thread, so that signals are heard.

    `look` is called again and again meanwhile.
    """
    results: list[_Result] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    # A daemon: when the work is interrupted, the program does not wait for it.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    is_done = False
    while not is_done:
        thread.join(_POLL_SECONDS)
        is_done = not thread.is_alive()
        look()
    if failures:
        raise failures[0]
    return results[0]


def with_checkpoint(
    path: str,
    step: int | None,
    work: Callable[[Stored], _Result],
    show: Show,
    warn: Callable[[str], None],
) -> tuple[_Result, bool]:
    """Does the work on a step's checkpoint, or on the newest that is intact.

    Returns what the work did, and whether a newer checkpoint was damaged.
    """
    told: set[tuple[int, int]] = set()

    def tell(reader: Reader) -> None:
        for item in reader.rejections():
            key = (item["slot"], item["sequence"])
            if key not in told:
                told.add(key)
                warn(
                    f"step {item['step']} (sequence {item['sequence']}) cannot be used: "
                    f"{item['message']}"
                )

    with Reader(path) as reader:
        largest = max((info.payload_byte_count for info in reader.list()), default=0)

        def look() -> None:
            if done := reader.verified_byte_count():
                show("verifying", done, largest)

        def select(function: Callable[..., CheckpointInfo], argument: Any) -> CheckpointInfo:
            try:
                return interruptible(lambda: function(argument), look)
            finally:
                tell(reader)

        info = select(reader.select_newest, step)
        while True:
            try:
                return work(Stored(path, reader, info, show)), bool(reader.rejections())
            except CheckpointError as error:
                info = select(reader.select_next, error)
