"""Runs a task of lightning_child.py as Lightning launches it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from ports import free_port

CHILD = Path(__file__).with_name("lightning_child.py")


def launch(directory: Path, task: str) -> None:
    """Lightning runs the program again for the second process."""
    with subprocess.Popen(
        [sys.executable, str(CHILD), str(directory), task],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
    ) as program:  # fmt: skip
        try:
            _, errors = program.communicate(timeout=300)
        finally:
            # Where one of them did not end, the other one would wait for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0, errors
