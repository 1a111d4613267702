"""A data loader: reads a file past the page cache, over and over, at a given rate.

    python -m Benchmarks.loader FILE BYTES_PER_SECOND
"""

from __future__ import annotations

import mmap
import os
import sys
import time

_READ_BYTE_COUNT = 1 << 20


def read(path: str, bytes_per_second: float) -> None:
    """Reads until it is killed. A device that is too slow is not asked for more later."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    # A mapping begins on a page, as O_DIRECT asks for.
    buffer = mmap.mmap(-1, _READ_BYTE_COUNT)
    size = os.fstat(file).st_size // _READ_BYTE_COUNT * _READ_BYTE_COUNT
    offset = 0
    due = time.monotonic()
    while True:
        os.preadv(file, [buffer], offset)
        offset = (offset + _READ_BYTE_COUNT) % size
        due = max(due, time.monotonic() - 0.1) + _READ_BYTE_COUNT / bytes_per_second
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    read(sys.argv[1], float(sys.argv[2]))
