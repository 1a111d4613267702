"""pcfsck beside a writer that never stops, and the memory that a full check needs."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import pccheck

TOOL = ROOT / "build" / "bin" / "pcfsck"

#: Saves until it is told to stop, and says when the first checkpoints are durable.
WRITER = """
import sys
import numpy as np
import pccheck
state = {"x": np.arange(1 << 19, dtype=np.int64)}
with pccheck.Checkpointer(sys.argv[1], in_flight=2, retain=2, chunk="64 KiB") as checkpointer:
    for step in range(1, 1_000_000):
        state["x"][::4096] = step
        checkpointer.save(step, state).wait()
        if step == 5:
            print("ready", flush=True)
"""


@pytest.fixture(autouse=True)
def _needs_the_tool() -> None:
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is not built; run make tools")


def fsck(*arguments: object) -> tuple[int, dict[str, Any]]:
    run = subprocess.run(
        [TOOL, "--json", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return run.returncode, json.loads(run.stdout)["files"][0]


def test_a_live_file_is_not_called_damaged(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    writer = run_child(WRITER, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    steps: set[int] = set()
    began = time.monotonic()
    checks = 0
    while checks < 20 or (len(steps) < 3 and time.monotonic() - began < 30):
        depth = "full" if checks % 2 else "metadata"
        status, file = fsck("--verify", depth, path)
        assert status == 0, file["findings"]
        assert file["is_clean"] and file["is_writer_at_work"]
        assert not [f for f in file["findings"] if f["severity"] in ("error", "warning")]
        steps.add(file["resume"]["choice"]["step"])
        checks += 1
    assert writer.poll() is None, "the writer was to work on all the time"
    assert len(steps) >= 3, "the file was to move between the checks"

    # What would be repaired in a file at rest is left alone; the writer never rewrites this block.
    with open(path, "r+b", buffering=0) as device:
        before = os.pread(device.fileno(), 1, 100)
        os.pwrite(device.fileno(), bytes([before[0] ^ 1]), 100)
        for option in ("-p", "-y"):
            status, file = fsck(option, path)
            assert status == 4 | 8 and not file["repairs_made"], file
            bad = [f["id"] for f in file["findings"] if f["severity"] in ("error", "warning")]
            assert bad == ["PCK-I001"], file["findings"]
        os.pwrite(device.fileno(), before, 100)

    # A killed writer holds no lock; what it left is what a crash leaves.
    writer.kill()
    writer.wait()
    status, file = fsck("--verify", "full", path)
    assert status == 0 and not file["is_writer_at_work"], file["findings"]


def test_memory_does_not_grow_with_the_chunks(path: Path) -> None:
    """What holds a chunk of 64 MiB in each of four threads does not fit into 200 MB."""
    state = {"x": np.random.default_rng(5).integers(0, 1 << 63, 24 << 20, dtype=np.int64)}
    with pccheck.Checkpointer(path, in_flight=1, chunk="64 MiB") as checkpointer:
        checkpointer.save(1, state).wait()
    # One arena: malloc reserves 64 MiB of addresses for each more of them.
    limited = ["bash", "-c", 'ulimit -v 200000; MALLOC_ARENA_MAX=1 exec "$0" "$@"', TOOL]
    run = subprocess.run(
        [*limited, "--verify", "full", "--json", path],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"{run.returncode}: {run.stderr}"
    assert json.loads(run.stdout)["files"][0]["resume"]["is_proven"]

    # In the middle of a chunk, and in its last, short piece: both are read.
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for element in (20 << 20, (24 << 20) - 4):
            offset = content.find(state["x"][element : element + 4].tobytes())
            assert offset > 0
            content[offset] ^= 1
    status, damaged = fsck("--verify", "full", path)
    assert status == 4
    chunks = [f["chunk"] for f in damaged["findings"] if f["id"] == "PCK-C001"]
    assert chunks == [2, 3], damaged["findings"]


def test_too_little_memory_is_no_trap(path: Path) -> None:
    """A compressed chunk must be in memory as a whole: what cannot be had is said."""
    state = {"x": np.arange(24 << 20, dtype=np.int64) // 1000}
    with pccheck.Checkpointer(path, in_flight=1, chunk="64 MiB", codec="zstd") as checkpointer:
        checkpointer.save(1, state).wait()
    for limit, statuses in ((70_000, {8}), (400_000, {0, 8}), (2_000_000, {0})):
        run = subprocess.run(
            ["bash", "-c", f'ulimit -v {limit}; exec "$0" "$@"', TOOL,
             "--verify", "full", "--json", path],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert run.returncode in statuses, f"{limit}: {run.returncode}: {run.stderr}"
        file = json.loads(run.stdout)["files"][0]
        assert file["is_clean"] and file["resume"]["is_proven"] == (run.returncode == 0)
        ids = {finding["id"] for finding in file["findings"]}
        assert ids == ({"PCK-C005"} if run.returncode == 8 else set())
    # Nothing older is taken for it, and nothing is repaired on such grounds.
    extract = TOOL.with_name("pcextract")
    run = subprocess.run(
        ["bash", "-c", 'ulimit -v 70000; exec "$0" "$@"', extract, path, "-o", f"{path}.out"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 8 and "64" in run.stderr and "ulimit -v" in run.stderr, run
