"""Where a checkpoint file is: checked when it is named, and again while it is written."""

from __future__ import annotations

import os
import re
import stat

from ..errors import CheckpointError, Corrupt, FileMissing, InvalidArgument, ReadOnly

# NAME_MAX of Linux.
_NAME_BYTE_LIMIT = 255
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def usable_path(given: str | os.PathLike[str]) -> str:
    """The absolute path, so that it names the same file when the current folder changes.

    Raises at once for a path that no file can be made at.
    """
    text = os.fsdecode(os.fspath(given))
    if _URL.match(text):
        raise InvalidArgument(
            f"{text} is a URL; PCcheck writes files and block devices of this machine: give a "
            "path, and copy the file when it is closed"
        )
    path = os.path.abspath(text)
    if os.path.isdir(path):
        raise InvalidArgument(
            f"{path} is a folder; name a file in it, such as {os.path.join(path, 'run.pcc')}"
        )
    if os.path.lexists(path):
        return path
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileMissing(f"{path}: there is no folder {folder}; make it first", code=2)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReadOnly(f"{path}: this user may not make files in {folder}", code=11)
    return path


def sibling(path: str, suffix: str) -> str:
    """A name beside a file: its own and a suffix, for which its last characters make room."""
    folder, name = os.path.split(path)
    while len(os.fsencode(name + suffix)) > _NAME_BYTE_LIMIT and name:
        name = name[:-1]
    return os.path.join(folder, name + suffix)


class OpenFile:
    """The file that a writer opened, by device and inode: a path may come to name another."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._found = os.stat(path)

    def check(self) -> None:
        """Raises when the next job would not find at the path what is written now."""
        try:
            now = os.stat(self._path)
        except OSError as error:
            is_gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
            what = "was removed or renamed" if is_gone else f"cannot be seen ({error.strerror})"
            raise self._gone(what, error) from None
        if (now.st_dev, now.st_ino) != (self._found.st_dev, self._found.st_ino):
            raise self._gone("was replaced: another file is there")
        if stat.S_ISREG(now.st_mode) and now.st_size < self._found.st_size:
            raise Corrupt(
                f"{self._path}: the file was truncated while it was open: it has {now.st_size} "
                f"bytes, expected {self._found.st_size}; nothing more is saved into it: start a "
                "new file, and run pcfsck on this one",
                code=8,
            )

    def _gone(self, what: str, error: OSError | None = None) -> CheckpointError:
        return FileMissing(
            f"{self._path}: the file {what} while this checkpointer writes it, so that no later "
            "job can find these checkpoints; nothing more is saved into it: put it back, or close "
            "this checkpointer and open another file",
            code=2,
            errno=error.errno if error else None,
        )
