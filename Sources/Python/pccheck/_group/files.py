"""The files of a run: one for each rank, named by rank and world, in one folder."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

from .._core.reader import Reader
from ..errors import CheckpointError, InvalidArgument, ReadOnly

_NAME = re.compile(r"rank-(\d{5,})-of-(\d{5,})\.pcc")


def file_name(rank: int, world_size: int) -> str:
    """``rank-00003-of-00008.pcc``."""
    return f"rank-{rank:05d}-of-{world_size:05d}.pcc"


def names_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a folder of rank files, not of one file: it ends with a slash, or
    the folder is there."""
    given = os.fsdecode(os.fspath(path))
    return given.endswith(os.sep) or os.path.isdir(given)


def usable_folder(given: str | os.PathLike[str]) -> str:
    """The folder of a run as an absolute path; it is made where it is missing."""
    path = os.path.abspath(os.fsdecode(os.fspath(given)))
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InvalidArgument(
            f"{path} is a file; name a folder, in which each rank has a file of its own"
        ) from None
    except OSError as error:
        raise ReadOnly(
            f"{path}: this folder cannot be made: {error.strerror}", code=11, errno=error.errno
        ) from None
    return path


def names_of_other_worlds(folder: str, world_size: int) -> list[str]:
    """The files in the folder that another number of ranks wrote."""
    return [name for name, size in _worlds(folder).items() if size != world_size]


def paths_in(folder: str) -> list[str]:
    """The files of all ranks that ever saved into the folder."""
    return [os.path.join(folder, name) for name in _worlds(folder)]


def _worlds(folder: str) -> dict[str, int]:
    """The number of ranks of each file, by its name."""
    matches = map(_NAME.fullmatch, sorted(os.listdir(folder)))
    return {match[0]: int(match[2]) for match in matches if match is not None}


def place_of(folder: str) -> str:
    """What is equal for two ranks that see the same folder of the same machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    found = os.stat(folder)
    return f"{boot} {socket.gethostname()} {found.st_dev} {found.st_ino}"


def report_of(path: str) -> dict[str, Any]:
    """What a restart must know of one file: its report, or why there is none."""
    try:
        with Reader(path) as reader:
            return {"path": path, "report": reader.report()}
    except CheckpointError as error:
        return {"path": path, "error": str(error)}
