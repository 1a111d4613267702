"""A new ``.pcc`` file for checkpoints of other formats, which appears when it is complete."""

from __future__ import annotations

import ctypes as c
import math
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

from .._core import native
from .._core.engine import Engine
from .._core.handle import Outcome
from .._files.place import sibling
from .._files.shape import payload_byte_count
from ..errors import CheckpointError, InvalidArgument, Timeout
from ..state import DOCUMENT_KEY, Encoder, document_text
from .failures import UnknownInput
from .inputs import Foreign
from .leaves import SOURCE_KEY, source_text
from .output import lock_creation, move_into_place, refuse_existing, sweep
from .stored import Show

_POOL_BYTE_COUNT = 64 << 20
_POLL_SECONDS = 0.05
_CHUNK_BYTE_COUNT = 4 << 20
_KINDS_WITH_PARTS = {
    "hugging-face": "a Hugging Face checkpoint", "group": "a checkpoint of several ranks",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How the file is made."""

    in_flight: int
    retain: int
    codec: str
    #: Bytes of the largest state.
    capacity: int


class Encoded:
    """A state as it is stored."""

    def __init__(self, foreign: Foreign, part: str | None) -> None:
        if part is not None and foreign.kind in _KINDS_WITH_PARTS:
            raise InvalidArgument(
                f"{foreign.path}: {_KINDS_WITH_PARTS[foreign.kind]} has parts of its own; leave "
                "--part out"
            )
        state = foreign.state if part is None else {part: foreign.state}
        note = foreign.note if part is None else {**foreign.note, "part": part}
        self.encoder: Encoder = foreign.encoder
        self.rank_count = foreign.rank_count
        self.left_out = foreign.left_out
        self.step = foreign.step
        try:
            document = self.encoder.encode_state(state)
        except (TypeError, ValueError) as error:
            raise UnknownInput(f"{foreign.path}: {error}") from None
        self.metadata = {**foreign.metadata, DOCUMENT_KEY: document_text(document)}
        if foreign.source_kind is not None:
            self.metadata[SOURCE_KEY] = source_text(foreign.source_kind, note)

    @property
    def tensor_count(self) -> int:
        """Tensors that are stored."""
        return len(self.encoder.entries)

    def byte_count(self) -> int:
        """Bytes of the payload."""
        return payload_byte_count(self.encoder.entries, self.metadata)


class Target:
    """The file under its temporary name, opened for writing."""

    def __init__(self, path: str, settings: Settings, *, force: bool, show: Show) -> None:
        refuse_existing(path, force)
        self._path = os.path.realpath(path) if os.path.islink(path) else path
        self._temporary_path = sibling(self._path, f".creating-{os.getpid()}")
        self._settings, self._force, self._show = settings, force, show
        self._engine: Engine | None = None
        self._is_published = False
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Target:
        settings = self._settings
        options = native.CreateOptions(
            struct_size=c.sizeof(native.CreateOptions), in_flight=settings.in_flight,
            retain=settings.retain, capacity_byte_count=settings.capacity,
            prealloc=native.PREALLOC["fallocate"], world_size=1, allow_network=1,
            chunk_byte_count=_CHUNK_BYTE_COUNT,
        )  # fmt: skip
        writer = native.WriterOptions(
            struct_size=c.sizeof(native.WriterOptions), world_size=1, allow_network=1,
            pool_byte_count=min(_POOL_BYTE_COUNT, 2 * settings.capacity),
            codec=native.CODEC[settings.codec],
        )  # fmt: skip
        sweep(self._path)
        place = native.encode_path(self._temporary_path)
        error = native.Error()
        try:
            native.check(
                native.library().pcc_create(place, c.byref(options), c.byref(error)), error
            )
            self._lock = open(self._temporary_path, "r+b")  # noqa: SIM115
            lock_creation(self._lock)
            self._engine = Engine(place, writer)
        except BaseException:
            self._remove()
            raise
        return self

    def save(self, step: int, encoded: Encoded) -> Outcome:
        """Returns when the checkpoint is durable."""
        engine = self._engine
        assert engine is not None
        total = encoded.byte_count()
        before = engine.stats()["chunk_write_count"]
        # Nobody changes what was read from a file.
        handle = engine.save(
            step, encoded.encoder.entries, encoded.metadata, None, math.inf, overlap=True
        )
        while True:
            try:
                outcome = handle.wait(_POLL_SECONDS)
            except Timeout:
                count = engine.stats()["chunk_write_count"] - before
                self._show(f"writing step {step}", min(count * _CHUNK_BYTE_COUNT, total), total)
                continue
            if not outcome.durable:
                raise CheckpointError(f"the checkpoint of step {step} was {outcome.kind}")
            return outcome

    def publish(self) -> None:
        """Closes the file, and gives it its name."""
        engine, self._engine = self._engine, None
        assert engine is not None
        engine.close()
        move_into_place(self._temporary_path, self._path, self._force)
        self._is_published = True
        if self._lock is not None:
            self._lock.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        engine: Any = self._engine
        if engine is not None:
            engine.abandon()
        if not self._is_published:
            self._remove()

    def _remove(self) -> None:
        if self._lock is not None:
            self._lock.close()
        if os.path.lexists(self._temporary_path):
            os.unlink(self._temporary_path)
