"""The network of a group over MPI, in jobs that mpiexec starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import transport_calls

CALLS = '''
import os, sys, time
import pccheck.mpi
from pccheck.errors import RanksMissing
transport = pccheck.mpi.MpiTransport()
rank, world = transport.rank, transport.world_size
assert transport.gather(b"", 60) == [b""] * world
transport.open_channels(["ends", "calls"], 60)
''' + transport_calls.CALLS + '''
if rank != 1:
    began = time.monotonic()
    try:
        transport.gather(b"", 1.5)
        raise AssertionError("nobody is missing")
    except RanksMissing as error:
        assert error.ranks == [1] and 1.4 < time.monotonic() - began < 10, error
else:
    time.sleep(3)
transport.close()
os.write(1, f"done {rank}\\n".encode())
'''
TRAINING = '''
import os, sys, torch
import pccheck.distributed as pcd, pccheck.mpi
transport = pccheck.mpi.MpiTransport()
folder, end = sys.argv[1], int(sys.argv[2])
state = {"a": torch.zeros(5000), "own": torch.zeros(3)}
with pcd.Checkpointer(folder, transport=transport, shared=["a"], timeout=60) as ckpt:
    start = ckpt.resume(**state)
    assert state["a"].eq(start).all() and state["own"].eq(transport.rank * start).all()
    for step in range(start, end):
        state["a"] += 1
        state["own"] += transport.rank
        handle = ckpt.save(step, **state)
    assert handle.wait_group().durable
os.write(1, f"done {transport.rank} {start}\\n".encode())
'''


def run(code: str, world: int, *arguments: object) -> list[str]:
    """What the ranks said, sorted."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    done = subprocess.run(
        [mpiexec, "-n", str(world), sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split("\n")[:-1])


def test_mpi_joins_and_names_who_is_late() -> None:
    assert run(CALLS, 3) == ["done 0", "done 1", "done 2"]


def test_a_job_of_mpi_continues(tmp_path: Path) -> None:
    assert run(TRAINING, 2, tmp_path / "run", 5) == ["done 0 0", "done 1 0"]
    assert run(TRAINING, 2, tmp_path / "run", 9) == ["done 0 5", "done 1 5"]
