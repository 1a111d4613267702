"""Machines of a job on one computer: network namespaces with a cable between them.

Each has its own loopback device and one end of a virtual cable, which a test can cut. Nothing in
them reaches any other network.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
_PORT = 29561


def can_make_machines() -> bool:
    """Whether this user may make network namespaces, which takes root."""
    name = f"pcc-{uuid.uuid4().hex[:8]}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made.returncode == 0


class Machines:
    """Two machines with one network."""

    def __init__(self) -> None:
        tag = uuid.uuid4().hex[:6]
        self.names = [f"pcc-{tag}-{number}" for number in range(2)]
        self._ends = [f"pcc{tag}{number}" for number in range(2)]
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for number, (name, end) in enumerate(zip(self.names, self._ends, strict=True)):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "address", "add", f"10.81.7.{number + 1}/24", "dev", end)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", end, "up")

    def torchrun(
        self, number: int, log: Path, script: Path, *arguments: str, restarts: int = 0
    ) -> subprocess.Popen[bytes]:
        """Starts the ranks of one machine: one rank each, machine 0 has the store of torch."""
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self._ends[number], "TP_SOCKET_IFNAME": self._ends[number],
        }  # fmt: skip
        command = [
            "ip", "netns", "exec", self.names[number], *TORCHRUN, "--nnodes", "2",
            "--node-rank", str(number), "--nproc-per-node", "1", "--max-restarts", str(restarts),
            "--master-addr", "10.81.7.1", "--master-port", str(_PORT), str(script), *arguments,
        ]  # fmt: skip
        with log.open("ab") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, cwd=log.parent,
            )  # fmt: skip

    def kill(self, number: int) -> None:
        """Kills all processes of a machine; torchrun starts each rank in a session of its own."""
        found = ["-"]
        while found:
            command = ["ip", "netns", "pids", self.names[number]]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found = run.stdout.split()
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            time.sleep(0.02)

    def cut(self) -> None:
        """Cuts the cable."""
        _ip("-n", self.names[1], "link", "set", self._ends[1], "down")

    def repair(self) -> None:
        """Connects the machines again."""
        _ip("-n", self.names[1], "link", "set", self._ends[1], "up")

    def close(self) -> None:
        """Removes the machines; the cable goes with them."""
        for number, name in enumerate(self.names):
            self.kill(number)
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
