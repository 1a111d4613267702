"""Jobs of several JAX processes on this machine: started, killed, and what they said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from ports import free_port

#: What every process runs first: it joins the job.
JOIN = '''
import json, logging, os, sys, time
import jax
rank, world, port, folder, devices = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(
    f"127.0.0.1:{port}", world, rank, heartbeat_timeout_seconds=20, shutdown_timeout_seconds=10)
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
logging.getLogger("jax").setLevel(logging.ERROR)
import jax.numpy as jnp, numpy as np, pccheck, pccheck.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

def say(*words):
    """One line, written at once: what it reports was true before."""
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
'''


class Job:
    """The processes of one job."""

    def __init__(self, folder: Path, world: int, code: str, devices: int = 1) -> None:
        """``folder`` is the place of the run, and of what the processes write."""
        self._out = folder / "out"
        self._out.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.processes = []
        for rank in range(world):
            arguments = [rank, world, port, folder / "run", devices]
            out, err = (open(self._path(rank, suffix), "wb") for suffix in ("out", "err"))
            with out, err:
                process = subprocess.Popen(
                    [sys.executable, "-c", JOIN + textwrap.dedent(code), *map(str, arguments)],
                    stdout=out, stderr=err, stdin=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
            self.processes.append(process)

    def _path(self, rank: int, suffix: str) -> Path:
        return self._out / f"rank-{rank}.{suffix}"

    def lines(self, rank: int) -> list[str]:
        """What a process said; a line that was cut off is left out."""
        return self._path(rank, "out").read_text().split("\n")[:-1]

    def log(self, rank: int) -> str:
        """The log of a process, and its traceback."""
        return self._path(rank, "err").read_text()

    def wait_for(self, rank: int, line: str, seconds: float = 60) -> None:
        """Waits until a process has said a line."""
        deadline = time.monotonic() + seconds
        while line not in self.lines(rank):
            assert self.processes[rank].poll() is None, self.log(rank)
            assert time.monotonic() < deadline, f"rank {rank} never said {line!r}"
            time.sleep(0.01)

    def kill(self, rank: int) -> None:
        """As a machine that dies."""
        self.processes[rank].send_signal(signal.SIGKILL)

    def ended(self, statuses: list[int] | None = None, seconds: float = 120) -> Job:
        """Waits for the processes, which end as expected; shows their logs otherwise."""
        deadline = time.monotonic() + seconds
        found: list[int | None] = []
        for process in self.processes:
            try:
                found.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                found.append(None)
                process.kill()
                process.wait()
        expected = [0] * len(found) if statuses is None else statuses
        logs = "\n".join(f"--- rank {rank}\n{self.log(rank)[-3000:]}" for rank in range(len(found)))
        assert found == expected, f"{found}\n{logs}"
        return self

    def end(self) -> None:
        """Ends what still runs, as a launcher does when a process died."""
        for process in self.processes:
            process.kill()
            process.wait()
