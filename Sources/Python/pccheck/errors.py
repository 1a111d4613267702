"""The exceptions of pccheck: one class per status that a program acts on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ._core.printable import printable, printable_lines

__all__ = [
    "CheckpointError",
    "InvalidArgument",
    "FileMissing",
    "FileAlreadyExists",
    "Locked",
    "Busy",
    "TooLarge",
    "NoCheckpoint",
    "Corrupt",
    "NotACheckpointFile",
    "Unsupported",
    "ReadOnly",
    "NoSpace",
    "DeviceError",
    "FailStop",
    "Closed",
    "StepBackwards",
    "FingerprintMismatch",
    "RankMismatch",
    "Timeout",
    "Forked",
    "SlotsExhausted",
    "OutOfMemory",
    "ResourceLimit",
    "AcceleratorError",
    "StateChanged",
    "StateFormatError",
    "UnsupportedState",
    "IncompleteShards",
    "NotTrusted",
    "LibraryNotFound",
    "RanksMissing",
    "RankFailed",
    "TransportFailed",
    "VoidCheckpoint",
]


class CheckpointError(Exception):
    """Base of everything that this package raises about a checkpoint file.

    The message reports what was found, what was expected, where, and what to do next.
    """

    #: The pcc_status of pccheck.h; 0 where the error arose in Python.
    default_code = 0
    #: The rank whose file it concerns, where the files of several ranks are read.
    rank: int | None = None
    #: Its message has lines of its own; another one has none, whatever a path or a key holds.
    _has_lines = False

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        slot: int | None = None,
        byte_offset: int | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(self._shown(message))
        self.code = self.default_code if code is None else code
        #: Index of the slot concerned, or None.
        self.slot = slot
        #: Offset in the file, or None.
        self.byte_offset = byte_offset
        #: errno of the failing system call, or None.
        self.errno = errno

    def reword(self, message: str) -> None:
        """Gives it another message."""
        self.args = (self._shown(message),)

    def _shown(self, message: str) -> str:
        return printable_lines(message) if self._has_lines else printable(message)


class InvalidArgument(CheckpointError, ValueError):
    """An argument is out of its documented range."""

    default_code = 1


class FileMissing(CheckpointError):
    """There is no file at this path."""

    default_code = 2


class FileAlreadyExists(CheckpointError):
    """There is a file at this path already."""

    default_code = 3


class Locked(CheckpointError):
    """Another writer has the file open."""

    default_code = 4


class Busy(CheckpointError):
    """Every slot is in flight, and the policy is to fail or the wait ran out of time."""

    default_code = 5


class TooLarge(CheckpointError):
    """The state is larger than a slot; create a file with a larger ``capacity``."""

    default_code = 6


class NoCheckpoint(CheckpointError):
    """The file holds no checkpoint that fits the request."""

    default_code = 7


class Corrupt(CheckpointError):
    """Stored bytes do not match their digest."""

    default_code = 8


class NotACheckpointFile(CheckpointError):
    """The file is foreign, truncated, or damaged by a text-mode transfer."""

    default_code = 9


class Unsupported(CheckpointError):
    """The file needs a newer version of pccheck."""

    default_code = 10


class ReadOnly(CheckpointError):
    """The file or its medium cannot be written."""

    default_code = 11


class NoSpace(CheckpointError):
    """The file system is full."""

    default_code = 12


class DeviceError(CheckpointError):
    """The operating system reported an input or output error."""

    default_code = 13


class FailStop(CheckpointError):
    """A superblock could not be committed. Reopen the file: what it then holds is the truth."""

    default_code = 14


class Closed(CheckpointError):
    """The checkpointer was closed."""

    default_code = 15


class StepBackwards(CheckpointError):
    """The step is below the last one saved; call ``rewind(step)`` when that is meant."""

    default_code = 16


class FingerprintMismatch(CheckpointError):
    """The file belongs to another model or topology."""

    default_code = 17


class RankMismatch(CheckpointError):
    """The file belongs to another rank or world size."""

    default_code = 18


class Timeout(CheckpointError, TimeoutError):
    """The deadline passed; the checkpoint continues in the background."""

    default_code = 19


class Forked(CheckpointError):
    """The checkpointer belongs to the parent process; a child opens its own file."""

    default_code = 20


class SlotsExhausted(CheckpointError):
    """Too many slots were taken out of use after failed flushes."""

    default_code = 21


class OutOfMemory(CheckpointError, MemoryError):
    """Memory for the staging pool was not available."""

    default_code = 22


class ResourceLimit(CheckpointError):
    """A limit on this process or user was reached: file size, open files, threads."""

    default_code = 26


class AcceleratorError(CheckpointError):
    """The runtime of an accelerator (CUDA) reported an error. What was durable stays."""

    default_code = 27


class StateChanged(CheckpointError):
    """State was changed while it was read in place; that checkpoint was discarded, or in debug
    mode, which compares digests after the fact, may hold a mixture."""

    def __init__(self, message: str, *, step: int, names: list[str]) -> None:
        super().__init__(message)
        #: The step of that checkpoint.
        self.step = step
        #: The tensors that were changed.
        self.names = names

    def __reduce__(self) -> tuple[Any, ...]:
        # Another rank receives it: torch.distributed.checkpoint sends errors as pickles.
        return partial(StateChanged, step=self.step, names=self.names), self.args


class StateFormatError(CheckpointError):
    """The state document of a checkpoint cannot be understood; see spec/STATE.md."""


class UnsupportedState(StateFormatError):
    """An intact checkpoint holds something that this installation cannot read.

    A newer pccheck, torch or ml_dtypes can. It is no reason to load an older checkpoint.
    """


class IncompleteShards(CheckpointError):
    """The files that were given do not hold all elements of a tensor.

    ``ranks`` are those whose files hold the rest, and were not given.
    """

    def __init__(self, message: str, *, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(IncompleteShards, ranks=self.ranks), self.args


class NotTrusted(CheckpointError):
    """A pickle asks for more than tensors and plain values: to read it is to run its program."""


class LibraryNotFound(CheckpointError, ImportError):
    """The native library could not be loaded; the message lists where PCcheck looked for it."""

    _has_lines = True


class _OfRanks(CheckpointError):
    def __init__(self, message: str, *, ranks: Sequence[int], code: int | None = None) -> None:
        super().__init__(message, code=code)
        #: The ranks concerned, as far as they are known.
        self.ranks = list(ranks)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another rank receives it: torch.distributed.checkpoint sends errors as pickles.
        return partial(type(self), ranks=self.ranks), self.args, vars(self)


class RanksMissing(_OfRanks, Timeout):
    """Other ranks of the group did not arrive in time."""

    default_code = 0


class RankFailed(_OfRanks):
    """Another rank of the group failed, so that this one cannot continue either."""


class VoidCheckpoint(_OfRanks):
    """A checkpoint of a group that is not durable on all ranks, and never will be."""


class TransportFailed(CheckpointError):
    """The ranks of the group cannot reach each other any more, as when one of them died."""


_BY_CODE: dict[int, type[CheckpointError]] = {
    kind.default_code: kind
    for kind in list(vars().values())
    if isinstance(kind, type) and issubclass(kind, CheckpointError) and kind.default_code
}


def error_for(
    code: int,
    message: str,
    *,
    slot: int | None = None,
    byte_offset: int | None = None,
    errno: int | None = None,
) -> CheckpointError:
    """The exception for a pcc_status."""
    kind = _BY_CODE.get(code, CheckpointError)
    return kind(message, code=code, slot=slot, byte_offset=byte_offset, errno=errno)
