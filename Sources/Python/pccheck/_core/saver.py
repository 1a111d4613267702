"""Whether the thread of a save may be in the middle of an operation on what was saved.

torch counts an in-place change when the change is done. It lets other threads run meanwhile, so
that the count of a tensor that is half changed is still the old one.
"""

from __future__ import annotations

import platform
import sys
import threading
from types import FrameType

# Calls that wait, which no operation of torch makes. Those between threads (futex) are not among
# them: an operation waits for its own threads so.
_WAITS = {
    # read, poll, select, nanosleep, accept, recvfrom, recvmsg, wait4, clock_nanosleep, epoll_wait,
    # waitid, pselect6, ppoll, epoll_pwait, accept4
    "x86_64": {0, 7, 23, 35, 43, 45, 47, 61, 230, 232, 247, 270, 271, 281, 288},
    "aarch64": {63, 73, 101, 202, 207, 212, 260, 115, 95, 72, 22, 242},
}.get(platform.machine(), set())
# Where a thread waits for another one, and can be in nothing else.
_WAITING_FUNCTIONS = {
    function.__code__
    for name in ("wait", "_wait_for_tstate_lock", "join")
    for kind in (threading.Condition, threading.Thread)
    if (function := getattr(kind, name, None)) is not None
}


# Of modules that call nothing which changes the memory of a caller. A thread in one of them may
# wait for a lock, and who holds that may wait for the decision.
_own_files: set[str] = set()


def changes_nothing(file: str) -> None:
    """Declares a module, by its ``__file__``, as one whose functions change no saved memory."""
    _own_files.add(file)


class Saver:
    """The thread that saves, which is the one that makes this."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._task = threading.get_native_id()
        # Where it was when this was asked first. The frame is held: no other one can take its
        # address, and pass for it.
        self._seen: tuple[FrameType, int] | None = None

    def is_past(self) -> bool:
        """True once it has left the operation that it was in when this was asked first."""
        if self._thread == threading.get_ident():
            return True
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return True
        if frame.f_code in _WAITING_FUNCTIONS or frame.f_code.co_filename in _own_files:
            return True
        if self._is_waiting():
            return True
        if self._seen is None:
            self._seen = (frame, frame.f_lasti)
            return False
        return frame is not self._seen[0] or frame.f_lasti != self._seen[1]

    def _is_waiting(self) -> bool:
        """Whether it is in a call of the system that waits, as the kernel reports."""
        try:
            with open(f"/proc/self/task/{self._task}/syscall") as file:
                number = file.read().split(maxsplit=1)[0]
        except OSError:
            return False
        return number.isdecimal() and int(number) in _WAITS
