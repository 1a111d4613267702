"""The one writer of a checkpoint file: it creates, opens, enlarges and closes the file."""

from __future__ import annotations

import ctypes as c
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .._core import native, open_files
from .._core.engine import Engine
from .._core.handle import SaveHandle
from .._core.options import EngineOptions, FileOptions
from .._core.past import Past
from ..errors import CheckpointError, Closed, FileAlreadyExists, Locked, TooLarge
from .place import OpenFile, usable_path
from .shape import Room, Shape

log = logging.getLogger("pccheck")


class FileOwner:
    """Holds a file and its engine. A subclass saves through ``_begin``, and has ``close``."""

    #: Where in the caller's program it was opened.
    opened_at = ""

    def __init__(
        self, path: str | os.PathLike[str], file: FileOptions, engine: EngineOptions
    ) -> None:
        """Prepares; ``_open_or_create`` touches the file."""
        self._path = usable_path(path)
        self.opened_at = open_files.place_of_caller()
        self._native_path = native.encode_path(self._path)
        self._file_options, self._engine_options = file, engine
        self._fingerprint = file.fingerprint_bytes
        asked = Shape(
            file.in_flight, file.retain, file.capacity_byte_count, file.chunk_byte_count
        )
        self._room = Room(self._path, asked, file.resize, file.allow_network)
        self._process = os.getpid()
        self._is_closed = self._is_reshaping = False
        self._open_lock = threading.RLock()
        self._engine: Engine | None = None
        self._file: OpenFile | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    @property
    def path(self) -> str:
        """The file, as an absolute path."""
        return self._path

    @property
    def is_open(self) -> bool:
        """True while it holds its file, which other writers find locked."""
        if self._engine is None or self._is_closed:
            return False
        return self._engine.is_open or (self._is_reshaping and self._process == os.getpid())

    def close(self) -> None:
        """Closes the file."""
        raise NotImplementedError

    # -- opening

    def _open_or_create(self) -> None:
        """Opens a file that exists. Without a capacity the first save creates a new one."""
        if os.path.exists(self._path):
            self._open()
        elif self._file_options.capacity_byte_count is not None:
            self._create(self._file_options.capacity_byte_count)

    def _make_first_engine(self, capacity: Callable[[], int]) -> None:
        """Makes the file and its engine, once and not for each thread that has a first save."""
        with self._open_lock:
            if self._engine is None:
                self._create(capacity())
            self._end_if_closed()

    def _end_if_closed(self) -> None:
        """After an engine was opened: a signal handler or a finalizer may have closed us since."""
        if self._is_closed:
            self._close_engine()
        self._check_open()

    def _create(self, capacity: int) -> None:
        options = self._file_options.create_options(capacity)
        error = native.Error()
        status = native.library().pcc_create(
            self._native_path, c.byref(options), c.byref(error)
        )
        try:
            native.check(status, error)
        except FileAlreadyExists:
            # Another writer created it first; opening finds out whether the file is ours to write.
            log.info("%s exists already; opening it", self._path)
        self._open()

    def _open(self) -> None:
        self._open_engine()
        shape = self._room.look()
        if shape is not None:
            try:
                self._reshape(shape)
            except BaseException:
                self.close()
                raise

    def _open_engine(self, past: Past | None = None) -> None:
        options = self._engine_options
        try:
            engine = Engine(
                self._native_path, options.writer_options(self._file_options), options.pin, past
            )
        except Locked as error:
            open_files.explain(self._path, error, self)
            raise
        self._engine = engine
        self._file = OpenFile(self._path)
        open_files.add(self)
        # Runs when the checkpointer is dropped, and before the interpreter exits.
        self._finalizer = weakref.finalize(self, engine.close)

    # -- saving into it

    def _begin(
        self, begin: Callable[[Engine], SaveHandle], capacity: Callable[[], int]
    ) -> SaveHandle:
        """Begins a checkpoint, and makes the file larger for it where that was not refused."""
        has_grown = False
        while True:
            engine = self._engine
            assert engine is not None
            try:
                return begin(engine)
            except TooLarge as error:
                if has_grown or not self._room.grows:
                    raise
                has_grown = self._grow(capacity, error, engine)
            except Closed:
                # Another thread may be making the file larger.
                with self._open_lock:
                    if self._is_closed or self._engine is engine:
                        raise

    def _grow(self, capacity: Callable[[], int], reason: TooLarge, engine: Engine) -> bool:
        """Makes room for a state that does not fit, once what is in flight is durable.

        False when another thread did so first, whose state may have been a smaller one.
        """
        with self._open_lock:
            if self._engine is not engine:
                return False
            self._check_open()
            try:
                self._reshape(Shape(capacity=capacity()))
            except CheckpointError as error:
                raise TooLarge(
                    f"{reason}; growing it failed: {error}", code=reason.code
                ) from error
            return True

    def _reshape(self, shape: Shape) -> None:
        """Closes the file, resizes it and opens it again; with the lock, or where nobody else
        knows of this checkpointer."""
        assert self._engine is not None
        self._is_reshaping = True
        try:
            past = self._engine.end()
            self._close_engine()
            try:
                self._room.resize(self._native_path, shape)
            finally:
                self._open_engine(past)
        finally:
            self._is_reshaping = False
        self._end_if_closed()
        self._room.look()

    # -- closing

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._finalizer is not None:
            self._finalizer.detach()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed(f"{self._path}: the checkpointer was closed; open the file again")
        if self._process != os.getpid():
            if self._engine is not None:
                self._engine.check_open()
            self._adopt()

    def _adopt(self) -> None:
        """In a forked child: the parent had not opened the file yet, so that the child may."""
        self._process = os.getpid()
        # A thread that exists only in the parent may hold the old one.
        self._open_lock = threading.RLock()
