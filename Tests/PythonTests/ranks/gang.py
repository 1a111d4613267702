"""The ranks of one job, as a test sees them: started, killed, stopped, and what they wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

CONNECT = "connect(rank, world, folder)\n"
HERE = Path(__file__).resolve().parent


class Nursery:
    """The process that forks ranks."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": self._path()}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    @staticmethod
    def _path() -> str:
        return os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends it, once no rank is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Gang:
    """The ranks of one job."""

    def __init__(
        self, nursery: Nursery, folder: Path, world: int, code: str, *, before: str = "",
        **arguments: Any,
    ) -> None:  # fmt: skip
        """``folder`` is the place of the run; what the ranks write goes to a part of it."""
        self._nursery = nursery
        self.out = folder / "out"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        (folder / "store").unlink(missing_ok=True)
        request = {
            "run": before + textwrap.dedent(code), "world": world, "folder": str(folder),
            "out": str(self.out), "arguments": arguments,
        }  # fmt: skip
        self.pids: list[int] = nursery.ask(request)["pids"]
        self.statuses: list[int | None] = [None] * world

    def wait(self, seconds: float = 60) -> list[int | None]:
        """Exit statuses by rank; negative for signals, None for what still runs."""
        left = [pid for pid, status in zip(self.pids, self.statuses) if status is None]
        if left:
            found = self._nursery.ask({"wait": left, "seconds": seconds})["statuses"]
            by_pid = dict(zip(left, found))
            self.statuses = [by_pid.get(p, s) for p, s in zip(self.pids, self.statuses)]
        return self.statuses

    def signal(self, rank: int, number: int) -> None:
        """Sends a signal to one rank."""
        os.kill(self.pids[rank], number)

    def kill(self) -> None:
        """Ends all ranks, as a launcher does when one of them died."""
        for pid, status in zip(self.pids, self.statuses):
            if status is None:
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def lines(self, rank: int) -> list[list[str]]:
        """What a rank said, as words; a line that was cut off is left out."""
        path = self.out / f"rank-{rank}.out"
        text = path.read_text() if path.exists() else ""
        return [line.split(" ") for line in text.split("\n")[:-1]]

    def said(self, rank: int, word: str) -> list[list[str]]:
        """The lines of a rank that begin with a word, without it."""
        return [line[1:] for line in self.lines(rank) if line[0] == word]

    def log(self, rank: int) -> str:
        """The log of a rank, and its traceback."""
        path = self.out / f"rank-{rank}.err"
        return path.read_text() if path.exists() else ""


def ended(gang: Gang, statuses: list[int] | None = None, seconds: float = 150) -> Gang:
    """Waits for the ranks, which end as expected; shows their logs otherwise."""
    found = gang.wait(seconds)
    expected = [0] * len(gang.pids) if statuses is None else statuses
    logs = "\n".join(f"--- rank {rank}\n{gang.log(rank)[-4000:]}" for rank in range(len(found)))
    assert found == expected, f"{found}\n{logs}"
    return gang
