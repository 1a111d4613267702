"""The options of a checkpointer in three structs: its file, its engine, and preemption.

Each checks itself when it is made, so that a bad option raises before a file is touched.
"""

from __future__ import annotations

import ctypes as c
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import InvalidArgument
from . import debug as watching
from . import native
from .arguments import U32_MAXIMUM, choice, parse_size, seconds, whole
from .engine import Pin

_Value = TypeVar("_Value")

_FINGERPRINT_BYTE_LIMIT = 254
_IN_FLIGHT_MAXIMUM = 64
_RETAIN_MAXIMUM = 16
_WORKER_COUNT_MAXIMUM = 64
#: What libzstd has; 0 is PCcheck's own choice.
_ZSTD_LEVELS = (-(1 << 17), 22)
_AFTER_SIGTERM = ("exit", "signal", "return")
_DEFAULT_IN_FLIGHT = 2


@dataclass(frozen=True)
class FileOptions:
    """The shape and identity of a file. An existing file keeps its own shape."""

    in_flight: int | None = None
    retain: int | None = None
    capacity: int | str | None = None
    chunk: int | str | None = None
    prealloc: str = "default"
    resize: bool | None = None
    fingerprint: str | None = None
    rank: int = 0
    world_size: int = 1
    allow_network: bool = False
    #: Of the job whose ranks write the file together; None for a file without a group.
    run_uuid: bytes | None = None
    is_of_group: bool = False
    capacity_byte_count: int | None = field(init=False)
    chunk_byte_count: int | None = field(init=False)
    fingerprint_bytes: bytes | None = field(init=False)

    def __post_init__(self) -> None:
        given = self.fingerprint
        _put(
            self,
            fingerprint_bytes=native.encode_text(given, "fingerprint", _FINGERPRINT_BYTE_LIMIT),
            in_flight=_given(self.in_flight, whole, "in_flight", 1, _IN_FLIGHT_MAXIMUM),
            retain=_given(self.retain, whole, "retain", 1, _RETAIN_MAXIMUM),
            capacity_byte_count=_given(self.capacity, parse_size, "capacity"),
            chunk_byte_count=_given(self.chunk, parse_size, "chunk", U32_MAXIMUM),
            rank=whole(self.rank, "rank", 0, U32_MAXIMUM),
            world_size=whole(self.world_size, "world_size", 1, U32_MAXIMUM),
            allow_network=bool(self.allow_network),
        )
        choice("prealloc", self.prealloc, native.PREALLOC)

    @property
    def in_flight_count(self) -> int:
        """How many checkpoints a new file has in flight."""
        return self.in_flight or _DEFAULT_IN_FLIGHT

    def create_options(self, capacity: int) -> native.CreateOptions:
        """The options of ``pcc_create`` for a file of this capacity."""
        return native.CreateOptions(
            struct_size=c.sizeof(native.CreateOptions),
            in_flight=self.in_flight or 0,
            retain=self.retain or 0,
            chunk_byte_count=self.chunk_byte_count or 0,
            capacity_byte_count=capacity,
            prealloc=native.PREALLOC[self.prealloc],
            rank=self.rank,
            world_size=self.world_size,
            fingerprint=self.fingerprint_bytes,
            allow_network=self.allow_network,
            run_uuid=(c.c_uint8 * 16)(*(self.run_uuid or bytes(16))),
        )


@dataclass(frozen=True)
class EngineOptions:
    """How the engine copies, compresses and writes, and what a busy save does."""

    codec: str = "none"
    zstd_level: int = 1
    on_busy: str = "wait"
    busy_timeout: float | None = None
    pool: int | str | None = None
    backend: str = "auto"
    snapshot_workers: int | None = None
    writer_workers: int | None = None
    deep_flush: bool = False
    pin: Pin | None = None
    debug: str | bool | None = None
    pool_byte_count: int = field(init=False)
    is_debugging: bool = field(init=False)

    def __post_init__(self) -> None:
        _put(
            self,
            busy_timeout=_given(self.busy_timeout, seconds, "busy_timeout"),
            snapshot_workers=_worker_count(self.snapshot_workers, "snapshot_workers"),
            writer_workers=_worker_count(self.writer_workers, "writer_workers"),
            pool_byte_count=_given(self.pool, parse_size, "pool") or 0,
            zstd_level=whole(self.zstd_level, "zstd_level", *_ZSTD_LEVELS),
            is_debugging=watching.is_enabled(self.debug),
        )
        choice("on_busy", self.on_busy, native.ON_BUSY)
        choice("backend", self.backend, native.BACKEND)
        choice("codec", self.codec, native.CODEC)

    def writer_options(self, file: FileOptions) -> native.WriterOptions:
        """The options of ``pcc_writer_open`` for a file of these options."""
        return native.WriterOptions(
            struct_size=c.sizeof(native.WriterOptions),
            on_busy=native.ON_BUSY[self.on_busy],
            backend=native.BACKEND[self.backend],
            snapshot_worker_count=self.snapshot_workers,
            writer_worker_count=self.writer_workers,
            pool_byte_count=self.pool_byte_count,
            codec=native.CODEC[self.codec],
            zstd_level=self.zstd_level,
            rank=file.rank,
            world_size=file.world_size,
            fingerprint=file.fingerprint_bytes,
            allow_network=file.allow_network,
            deep_flush=bool(self.deep_flush),
            accepts_group=file.is_of_group,
        )

    def busy_deadline(self) -> float | None:
        """Until when a save that begins now waits for a slot; None where it does not wait."""
        if self.on_busy != "wait":
            return None
        return math.inf if self.busy_timeout is None else time.monotonic() + self.busy_timeout


@dataclass(frozen=True)
class PreemptionOptions:
    """What happens when SIGTERM asks the process to end."""

    on_sigterm: str | None = None
    after_sigterm: str = "exit"
    grace: float = 30.0

    def __post_init__(self) -> None:
        if self.on_sigterm not in (None, "save"):
            raise InvalidArgument(f"on_sigterm is {self.on_sigterm!r}; give 'save', or None")
        if not self.is_wanted:
            return
        if self.after_sigterm not in _AFTER_SIGTERM:
            raise InvalidArgument(
                f"after_sigterm is {self.after_sigterm!r}; choose one of "
                f"{', '.join(_AFTER_SIGTERM)}"
            )
        if not seconds(self.grace, "grace") > 0:
            raise InvalidArgument(
                f"grace is {self.grace}; give the seconds from SIGTERM to the kill"
            )

    @property
    def is_wanted(self) -> bool:
        """True when a signal handler is to be installed."""
        return self.on_sigterm is not None


def _put(options: Any, **values: object) -> None:
    """Stores checked values in a frozen struct that is being made."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def _given(value: Any, check: Callable[..., _Value], *arguments: Any) -> _Value | None:
    """The checked value of an option; None where it was not given."""
    return None if value is None else check(value, *arguments)


def _worker_count(count: int | None, what: str) -> int:
    """How many threads; 0 leaves that to the library."""
    return 0 if count is None else whole(count, what, 0, _WORKER_COUNT_MAXIMUM)
