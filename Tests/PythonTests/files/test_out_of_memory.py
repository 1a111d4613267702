"""A training process that the kernel kills because its control group has no memory left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pccheck
import pccheck.numpy

MIB = 1 << 20
LIMIT_BYTE_COUNT = 160 * MIB

TRAINING = """
import sys, numpy as np, pccheck.numpy
state = {"x": np.zeros(1 << 20)}
hoard = []
with pccheck.numpy.Checkpointer(sys.argv[1], pool="8 MiB", chunk="1 MiB") as checkpointer:
    start = checkpointer.resume(state=state)
    for step in range(start, start + 100):
        state["x"][:] = step
        handle = checkpointer.save(step, state=state)
        handle.wait_staged()
        if step % 4 == 3:
            handle.wait()
            print(step, flush=True)
        # The leak of which it dies, while saves are in flight.
        if sys.argv[2] == "leaks":
            hoard.append(np.ones(1 << 19))
print("end", flush=True)
"""


def group_root() -> tuple[Path, str]:
    """Where control groups for memory are made, and the file of their limit."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):  # fmt: skip
        controllers = root / "cgroup.controllers"
        if (root / "memory.limit_in_bytes").exists():
            return root, limit
        if controllers.exists() and "memory" in controllers.read_text().split():
            return root, limit
    pytest.skip("there are no control groups for memory here")


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    root, limit = group_root()
    group = root / f"pccheck-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT_BYTE_COUNT))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"cannot make a control group here: {error}")
    try:
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                return
            except OSError:
                time.sleep(0.1)


def test_a_run_that_is_killed_for_want_of_memory(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    with control_group() as group:
        # It puts itself into the group before it takes any memory.
        code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n" + TRAINING
        child = run_child(code, path, "leaks")
        output, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors
    said = [int(line) for line in output.split()]
    assert said, "it was killed before anything was durable"
    held = [info.step for info in pccheck.checkpoints(path)]
    assert held[0] >= said[-1]
    state = {"x": np.zeros(1 << 20)}
    with pccheck.numpy.Checkpointer(path) as checkpointer:
        start = checkpointer.resume(state=state)
        assert start == held[0] + 1 and (state["x"] == held[0]).all()
    child = run_child(TRAINING, path, "well")
    output, errors = child.communicate(timeout=60)
    assert child.returncode == 0 and output.endswith("end\n"), errors
    assert pccheck.checkpoints(path)[0].step == start + 99
