"""Files and directories that appear under their name only when they are complete and durable."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from .._core import native
from .._files.place import sibling
from .._group.files import paths_in
from ..errors import FileAlreadyExists, InvalidArgument

# The byte that the creation of a file locks: spec/FORMAT.md, section 12.
_CREATION_BYTE = 1


def refuse_existing(path: str, force: bool) -> None:
    """Raises when something is there that must not, or cannot, be replaced."""
    if not os.path.lexists(path):
        return
    if os.path.isdir(path):
        raise InvalidArgument(f"{path} is a directory; give the name of a file")
    if not os.path.isfile(path):
        raise InvalidArgument(
            f"{path} is neither a file nor a new name; pcextract writes to pipes and devices"
        )
    if not force:
        raise FileAlreadyExists(f"{path} exists; give another name, or --force to replace it")


def refuse_itself(inputs: Sequence[str], output: str) -> None:
    """Raises when the output is one of the inputs, which --force would otherwise replace."""
    place = os.path.realpath(output)
    for path in inputs:
        if os.path.exists(output) and os.path.samefile(path, output):
            raise InvalidArgument(f"{output} is what is to be read; choose another name")
        if os.path.isdir(path) and paths_in(path) and _is_inside(place, os.path.realpath(path)):
            raise InvalidArgument(
                f"{output} is in the folder that is to be read, where only ranks have files; "
                "choose another place"
            )


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def refuse_existing_directory(path: str) -> None:
    """Raises when there is more than an empty directory: what is in one is never removed."""
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise FileAlreadyExists(f"{path} is not a directory; give the name of a new one")
    with os.scandir(path) as entries:
        if any(True for _ in entries):
            raise FileAlreadyExists(
                f"{path} is not empty, and no directory is ever replaced; give a new name"
            )


def lock_creation(file: BinaryIO) -> None:
    """Says that the creation of a file lives, for as long as ``file`` is open.

    The next creation of the same path removes what killed ones left: files of such a name that
    nobody has locked (spec/COMMIT.md, "Create").
    """
    # struct flock: type, whence, start, length, and a process that must be 0.
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _CREATION_BYTE, 1, 0)
    # A file system without locks is one on which nobody removes leftovers.
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)


def sweep(path: str) -> None:
    """Removes what killed programs left of the file that they were making there. Best effort."""
    native.library().pcc_sweep(native.encode_path(path), None)


class _Staged:
    """Something that grows beside its place under a temporary name."""

    def __init__(self, path: str) -> None:
        if not os.path.basename(path):
            raise InvalidArgument(f"'{path}' names no file")
        self.path = path
        #: What a killed program leaves under such a name can be removed.
        self.temporary_path = sibling(path, f".creating-{os.getpid()}")
        self._is_published = False

    def _remove(self) -> None:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_published:
            self._remove()


class StagedFile(_Staged):
    """A new file."""

    def __init__(self, path: str, *, force: bool = False) -> None:
        """With ``force`` a file that is there is replaced, behind a symbolic link too."""
        refuse_existing(path, force)
        super().__init__(os.path.realpath(path) if os.path.islink(path) else path)
        self._force = force
        self.file: BinaryIO

    def __enter__(self) -> StagedFile:
        sweep(self.path)
        self.file = open(self.temporary_path, "x+b")  # noqa: SIM115
        lock_creation(self.file)
        return self

    def publish(self) -> None:
        """Durable under its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        move_into_place(self.temporary_path, self.path, self._force)
        self._is_published = True
        # With it the lock goes, so that the file has its name before.
        self.file.close()

    def _remove(self) -> None:
        # What was buffered may have no room; the file goes anyway.
        with suppress(OSError):
            self.file.close()
        os.unlink(self.temporary_path)


class StagedDirectory(_Staged):
    """A new directory."""

    def __init__(self, path: str) -> None:
        path = path.rstrip("/") or path
        refuse_existing_directory(path)
        super().__init__(path)

    def __enter__(self) -> StagedDirectory:
        os.mkdir(self.temporary_path)
        return self

    def publish(self) -> None:
        """Durable under its name, with all that is in it."""
        for folder, _, names in os.walk(self.temporary_path):
            for name in names:
                _sync(os.path.join(folder, name))
            _sync(folder)
        # Replaces an empty directory, and nothing else.
        os.rename(self.temporary_path, self.path)
        self._is_published = True
        _sync(os.path.dirname(os.path.abspath(self.path)))

    def _remove(self) -> None:
        shutil.rmtree(self.temporary_path, ignore_errors=True)


def move_into_place(temporary_path: str, path: str, force: bool) -> None:
    """Gives a durable file its name, durably; replaces another file only when told to."""
    if force:
        os.rename(temporary_path, path)
    else:
        # A link fails where a rename would replace what somebody else put there meanwhile.
        try:
            os.link(temporary_path, path)
        except FileExistsError:
            raise FileAlreadyExists(f"{path} appeared meanwhile; it was left alone") from None
        except OSError:
            # A file system without links.
            refuse_existing(path, force)
            os.rename(temporary_path, path)
        else:
            os.unlink(temporary_path)
    _sync(os.path.dirname(os.path.abspath(path)))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
