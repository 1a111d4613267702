"""Debug mode: notices when something writes to state that is being read in place.

Optimizers wait until a save is staged; what changes parameters in another way must call
``wait_staged()`` first, or the checkpoint holds a mixture. Here the digest of every tensor that is
read in place is taken by ``save`` and again once it is staged, before anybody may change it. That
reads the state twice more, at about 1 GB/s. Tensors on an accelerator are left out.
"""

from __future__ import annotations

import ctypes as c
import os
import zlib
from collections.abc import Sequence

from ..errors import InvalidArgument, StateChanged
from .tensors import TensorEntry

_LISTED_NAME_COUNT = 5


def is_enabled(debug: str | bool | None) -> bool:
    """Whether digests are wanted: by argument, else by the environment."""
    if debug is None:
        debug = os.environ.get("PCCHECK_DEBUG", "")
        return debug not in ("", "0")
    if debug in (False, True):
        return bool(debug)
    if debug != "digest":
        raise InvalidArgument(f"debug is {debug!r}; give 'digest', or None")
    return True


class Watch:
    """The digests of one state at the time of its save."""

    def __init__(self, step: int, entries: Sequence[TensorEntry]) -> None:
        self._step = step
        # The owners keep the memory alive for as long as it may be read here.
        self._expected = [
            (entry, _digest(entry))
            for entry in entries
            if entry.byte_count and not entry.is_copy and entry.place is None
        ]

    def check_early(self) -> None:
        """As ``check``, for the memory that nothing guards: it was copied, and may change now."""
        early = [pair for pair in self._expected if not pair[0].is_guarded]
        self._expected = [pair for pair in self._expected if pair[0].is_guarded]
        self._compare(early)

    def check(self) -> None:
        """Raises ``StateChanged`` with the names of what was changed; checks once."""
        expected, self._expected = self._expected, []
        self._compare(expected)

    def _compare(self, expected: list[tuple[TensorEntry, int]]) -> None:
        changed = [entry.name for entry, digest in expected if _digest(entry) != digest]
        if not changed:
            return
        more = len(changed) - _LISTED_NAME_COUNT
        names = ", ".join(f"'{name}'" for name in changed[:_LISTED_NAME_COUNT])
        raise StateChanged(
            f"step {self._step}: {names}{f' and {more} more' if more > 0 else ''} changed between"
            " save() and staged: something wrote to it that is no step of a torch optimizer, such"
            " as an in-place operation, a copy into .data, or a fused optimizer of another package."
            " That checkpoint may hold a mixture; call wait_staged() before such a write",
            step=self._step,
            names=changed,
        )


def _digest(entry: TensorEntry) -> int:
    memory = (c.c_char * entry.byte_count).from_address(entry.address)
    return zlib.crc32(memory)
