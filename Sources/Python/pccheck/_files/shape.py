"""The shape of a file: the requested one, the actual one, and the change between them."""

from __future__ import annotations

import ctypes as c
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from .._core import native
from .._core.engine import TensorTable, metadata_array
from .._core.reader import Reader
from .._core.tensors import TensorEntry
from ..errors import InvalidArgument

log = logging.getLogger("pccheck")

# A file made for a state gets this much more, for text that grows such as counters.
_ROOM_FRACTION = 10
_ROOM_BYTE_COUNT = 1 << 20
# A save that takes more of a slot than this is a warning.
_NEAR_FRACTION = 0.9
_BLOCK_BYTE_COUNT = 4096


def payload_byte_count(entries: Sequence[TensorEntry], metadata: dict[str, str]) -> int:
    """Bytes that a state takes in a slot."""
    address, count = (table := TensorTable()).fill(entries)
    rows = metadata_array(metadata)
    found, error = c.c_uint64(), native.Error()
    status = native.library().pcc_payload_byte_count(
        address, count, rows, len(rows), c.byref(found), c.byref(error)
    )
    del table
    native.check(status, error)
    return found.value


def capacity_for(entries: Sequence[TensorEntry], metadata: dict[str, str], room: int = 0) -> int:
    """A capacity for this state, a little growth, and ``room`` bytes more."""
    return with_room(payload_byte_count(entries, metadata)) + room


def with_room(byte_count: int) -> int:
    """A capacity for a state that may grow a little."""
    return byte_count + byte_count // _ROOM_FRACTION + _ROOM_BYTE_COUNT


@dataclass(frozen=True)
class Shape:
    """What a file has, or what is asked of it; None where nothing is asked."""

    in_flight: int | None = None
    retain: int | None = None
    capacity: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("in_flight", self.in_flight), ("retain", self.retain)):
            if value is not None and value < 1:
                raise InvalidArgument(f"{name} is {value}; it must be at least 1")


class Room:
    """What a file has room for, and what happens to a state that does not fit.

    ``resize`` True gives an existing file the requested shape, and grows it. None grows a file
    without a requested capacity. False does neither.
    """

    def __init__(
        self, path: str, asked: Shape, resize: bool | None, allow_network: bool
    ) -> None:
        self._path = path
        self._asked = asked
        self._resizes = bool(resize)
        self.grows = asked.capacity is None if resize is None else resize
        self._allow_network = allow_network
        self._found = Shape()
        self._is_near_told = False

    def look(self) -> Shape | None:
        """Reads the shape of the file. Returns the shape to give it, if one was requested."""
        with Reader(self._path) as reader:
            report = reader.report()
        self._found = Shape(
            report["in_flight"], report["retain"], report["slot_byte_count"],
            report["chunk_byte_count"],
        )  # fmt: skip
        asked, found = self._asked, self._found
        changes = {
            name: value
            for name in ("in_flight", "retain")
            if (value := getattr(asked, name)) not in (None, getattr(found, name))
        }
        if asked.capacity is not None and found.capacity is not None:
            needed = -(-asked.capacity // _BLOCK_BYTE_COUNT) * _BLOCK_BYTE_COUNT
            # A file that has grown is not made smaller again.
            if needed > found.capacity or (needed < found.capacity and not self._resizes):
                changes["capacity"] = asked.capacity
        self._warn_of_chunk()
        if self._resizes:
            return Shape(**changes) if changes else None
        if changes:
            self._warn_of(changes)
        return None

    def _warn_of(self, changes: dict[str, int]) -> None:
        log.warning(
            "%s: the file keeps what it was created with: %s; close it and run %s, or open it with "
            "resize=True",
            self._path,
            ", ".join(
                f"{name} is {getattr(self._found, name)}, not {value}"
                for name, value in changes.items()
            ),
            self.command(**changes),
        )

    def _warn_of_chunk(self) -> None:
        asked, found = self._asked.chunk, self._found.chunk
        if asked not in (None, found):
            log.warning(
                "%s: chunk is %s in this file, not %s; a file keeps its chunk size: make a new "
                "file for another one",
                self._path, found, asked,
            )  # fmt: skip

    def command(self, **changes: int) -> str:
        """The command that gives the file another shape."""
        options = [f"--{name.replace('_', '-')} {value}" for name, value in changes.items()]
        return " ".join(["pccheck resize", shlex.quote(self._path), *options])

    def used(self, byte_count: int) -> None:
        """Warns once when a state of so many bytes nearly fills a slot that does not grow."""
        capacity = self._found.capacity
        if self.grows or self._is_near_told or not capacity:
            return
        if byte_count > _NEAR_FRACTION * capacity:
            self._is_near_told = True
            log.warning(
                "%s: the state takes %d bytes of the %d that a slot holds; a larger one raises "
                "TooLarge: close the file in time and run %s, or open it with resize=True",
                self._path, byte_count, capacity, self.command(capacity=2 * byte_count),
            )  # fmt: skip

    def resize(self, native_path: bytes, shape: Shape) -> None:
        """Gives the file, which no writer has open now, another shape; it keeps its checkpoints."""
        options = native.ResizeOptions(
            struct_size=c.sizeof(native.ResizeOptions),
            in_flight=shape.in_flight or 0,
            retain=shape.retain or 0,
            allow_network=self._allow_network,
            capacity_byte_count=shape.capacity or 0,
        )
        error = native.Error()
        native.check(
            native.library().pcc_resize(native_path, c.byref(options), c.byref(error)), error
        )
        log.log(
            logging.INFO if self._resizes else logging.WARNING,
            "%s: resized: %s",
            self._path,
            ", ".join(
                f"{name} from {getattr(self._found, name)} to {value}"
                for name in ("in_flight", "retain", "capacity")
                if (value := getattr(shape, name)) is not None
            ),
        )
