"""Writers that are made to be killed, and what must be true of what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_child import CAPACITY, CHUNK
from disks import PCCHECK, command

CHILD = Path(__file__).with_name("crash_child.py")

SEED = int(os.environ.get("PCCHECK_SOAK_SEED", "20260101"))
SOAK_SECONDS = float(os.environ.get("PCCHECK_SOAK_SECONDS", "0"))

#: Five slots of 512 KiB and what belongs to them.
DEVICE_BYTE_COUNT = 4 << 20

#: Backends of a writer on an ordinary disk.
BACKENDS = ["auto", "direct", "buffered", "io_uring"]

NO_FLUSH = """
int fsync(int file) { (void)file; return 0; }
int fdatasync(int file) { (void)file; return 0; }
"""

#: Writes of chunks go on behind the caller's back, and a flush does not wait for them.
NO_JOIN = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct late { int file; void *bytes; size_t count; off_t offset; };
static ssize_t (*next)(int, const void *, size_t, off_t);

static void *write_late(void *argument) {
    struct late *late = argument;
    usleep(rand() % 2000);
    next(late->file, late->bytes, late->count, late->offset);
    free(late->bytes);
    free(late);
    return NULL;
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    if (!next) next = dlsym(RTLD_NEXT, "pwrite");
    if (count < 32768) return next(file, bytes, count, offset);
    struct late *late = malloc(sizeof *late);
    *late = (struct late){file, NULL, count, offset};
    if (posix_memalign(&late->bytes, 4096, count)) abort();
    memcpy(late->bytes, bytes, count);
    pthread_t thread;
    if (pthread_create(&thread, NULL, write_late, late)) abort();
    pthread_detach(thread);
    return count;
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off_t offset) {
    return pwrite(file, bytes, count, offset);
}
"""


class Violation(AssertionError):
    """A promise of the format that was broken; the message says which, and how to replay it."""


#: What a writer that promises too much is found out by: something acknowledged is gone, a
#: superblock that reached the disk names what did not, or pcfsck finds damage that no power cut
#: explains.
LOSS = r"was acknowledged|are lost|cannot be opened|pcfsck( -p)? exits with 4"


class Child:
    """A writer that has read its libraries and waits to be told what to write."""

    def __init__(self, acknowledge: str = "durable", preload: Path | None = None) -> None:
        environment = dict(os.environ)
        if preload is not None:
            environment["LD_PRELOAD"] = str(preload)
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), "--acknowledge", acknowledge],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self._lines: list[str] = []
        # Reads all the time, so that a full pipe never slows the writer down.
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        # A line without its end was cut by the kill: it was never reported.
        for line in self._process.stdout:
            if line.endswith("\n"):
                self._lines.append(line)

    def start(self, path: Path, seed: int, options: dict[str, Any], **more: Any) -> None:
        """``log`` and ``goes_on`` are those of `crash_child.run`."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the child did not start"
        self._thread.start()
        request = {"path": str(path), "seed": seed, "options": options, **more}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    def wait_for_lines(self, count: int = 1, last_word: str = "failed") -> None:
        """Returns when so many lines were written, or one that begins with the last word, or the
        child is dead."""
        began = time.monotonic()
        while (
            len(self._lines) < count
            and not any(line.startswith(last_word) for line in self._lines)
            and self._process.poll() is None
        ):
            assert time.monotonic() - began < 60, f"{len(self._lines)} lines in 60 s"
            time.sleep(0.001)

    def kill(self) -> list[str]:
        """Ends the child without warning; returns the lines that it wrote before."""
        self._process.kill()
        self._process.wait()
        if self._thread.ident is not None:
            self._thread.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return self._lines


@contextlib.contextmanager
def children(**options: Any) -> Iterator[Callable[[], Child]]:
    """Children, one started ahead while the last one is looked at; all are ended."""
    started = [Child(**options)]

    def take() -> Child:
        # The one before is dead by now.
        started.append(Child(**options))
        del started[:-2]
        return started[0]

    try:
        yield take
    finally:
        for child in started:
            child.kill()


def report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Shows what was done even when nothing failed."""
    with capsys.disabled():
        print(f"\n{text}")


def preloadable(folder: Path, name: str, source: str) -> Path:
    """A library of a few C functions that come before those of the C library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing; run .ci/install-packages")
    code, library = folder / f"{name}.c", folder / f"{name}.so"
    code.write_text(source)
    built = command(compiler, "-shared", "-fPIC", "-O1", "-pthread", "-o", library, code)
    assert built.returncode == 0, built.stderr
    return library


_READ_FAILS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>
ssize_t pread(int file, void *data, size_t count, off_t offset) {
    ssize_t (*next)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    off_t bad = atoll(getenv("BAD_SECTOR"));
    if (offset <= bad && bad < offset + (off_t)count) { errno = EIO; return -1; }
    return next(file, data, count, offset);
}
ssize_t pread64(int file, void *data, size_t count, off_t offset) {
    return pread(file, data, count, offset);
}
"""


def run_with_bad_sector(
    program: str, path: Path, content: bytes, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Runs a program that cannot read the last place of the file that holds ``content``."""
    environment = os.environ | {
        "LD_PRELOAD": str(preloadable(folder, "badsector", _READ_FAILS)),
        "BAD_SECTOR": str(path.read_bytes().rfind(content)),
    }
    return subprocess.run(
        [sys.executable, "-c", program, path], env=environment, capture_output=True, text=True
    )


def create_on(device: Path, in_flight: int, retain: int) -> None:
    created = command(
        PCCHECK, "create", device, "--replace", "--capacity", CAPACITY.replace(" ", ""),
        "--chunk", CHUNK.replace(" ", ""), "--in-flight", in_flight, "--retain", retain,
    )  # fmt: skip
    assert created.returncode == 0, created.stderr
