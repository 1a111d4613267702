"""Runs programs from a process that is small itself, and tells how much memory they took.

The kernel counts a child's peak from that of its parent, so a test process that is large would hide
what it wants to see. `Measurer` starts this file as a server and sends it one command a line.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    # Negative: ended by this signal.
    status: int
    stdout: bytes
    # With a terminal, stdout has both.
    stderr: bytes
    peak_byte_count: int
    seconds: float


class Measurer:
    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)

    def run(
        self, arguments: list[str], *, address_space: int = 0, terminal: bool = False,
        timeout: int = 120, cwd: str | None = None, environment: dict[str, str] | None = None,
    ) -> Measured:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps([arguments, address_space, terminal, timeout, cwd,
                                             environment]) + "\n")
        self._server.stdin.flush()
        status, output, errors, peak, seconds = json.loads(self._server.stdout.readline())
        return Measured(status, base64.b64decode(output), base64.b64decode(errors), peak, seconds)

    def close(self) -> None:
        self._server.communicate()


def limit(address_space: int) -> None:
    if address_space:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def ended(process: subprocess.Popen[bytes], timeout: int) -> tuple[int, int]:
    """Exit status and peak; killed when it takes too long."""
    timer = threading.Timer(timeout, lambda: os.kill(process.pid, 9))
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss << 10


def run(arguments, address_space, terminal, timeout, cwd, environment):
    start = time.monotonic()
    options = dict(cwd=cwd, env=environment, preexec_fn=lambda: limit(address_space))
    if terminal:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=theirs,
                                   stderr=theirs, **options)
        os.close(theirs)
        pieces = []
        try:
            while piece := os.read(ours, 1 << 16):
                pieces.append(piece)
        except OSError:
            # The other side is closed.
            pass
        os.close(ours)
        status, peak = ended(process, timeout)
        output, errors = b"".join(pieces), b""
    else:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                       **options)
            status, peak = ended(process, timeout)
            out.seek(0)
            err.seek(0)
            output, errors = out.read(), err.read()
    return [status, base64.b64encode(output).decode(), base64.b64encode(errors).decode(), peak,
            time.monotonic() - start]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
