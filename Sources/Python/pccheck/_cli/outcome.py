"""How a command ends: its exit status, and its JSON document."""

from __future__ import annotations

import enum
import json
from typing import Any

from .._convert.failures import DamagedInput
from .._version import VERSION
from ..errors import Corrupt, InvalidArgument, StateFormatError, UnsupportedState
from .terminal import Output

#: The schema of everything that the commands print; a change of meaning raises it.
SCHEMA_VERSION = 1
TOOL = "python -m pccheck"


class Status(enum.IntFlag):
    """Exit status: the bits of fsck(8), as of the native tools."""

    DONE = 0
    #: Damage was found, in a checkpoint or in what was to be converted.
    DAMAGED = 4
    #: The work could not be done: no such file, no permission, a full disk.
    FAILED = 8
    USAGE = 16
    #: SIGINT or SIGTERM came.
    CANCELLED = 32


def status_of(error: BaseException) -> Status:
    """The status for what went wrong."""
    if isinstance(error, UnsupportedState):
        return Status.FAILED
    if isinstance(error, (Corrupt, StateFormatError, DamagedInput)):
        return Status.DAMAGED
    if isinstance(error, InvalidArgument):
        return Status.USAGE
    return Status.FAILED


def print_json(out: Output, command: str, members: dict[str, Any]) -> None:
    """Prints a command's document."""
    document = {
        "schema_version": SCHEMA_VERSION, "tool": TOOL, "tool_version": VERSION,
        "command": command, **members,
    }  # fmt: skip
    # ASCII: a name with half a surrogate pair, or an escape, does no harm in it.
    out.raw(json.dumps(document, indent=2) + "\n")
