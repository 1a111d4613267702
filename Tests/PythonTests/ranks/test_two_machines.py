"""A job of two machines, started by torchrun on each: it continues, also after a cut network."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from machines import Machines, can_make_machines

pytestmark = pytest.mark.skipif(
    not can_make_machines(), reason="network namespaces need root and ip(8), of iproute2"
)

SCRIPT = ROOT / "Sources" / "Python" / "examples" / "train_distributed.py"
_ENDLESS = 1_000_000


@pytest.fixture
def machines() -> Iterator[Machines]:
    both = Machines()
    try:
        yield both
    finally:
        both.close()


def start(
    machines: Machines, logs: list[Path], folders: list[Path], steps: int, *more: str
) -> list[subprocess.Popen[bytes]]:
    return [
        machines.torchrun(number, log, SCRIPT, str(folder), "--steps", str(steps), *more)
        for number, (log, folder) in enumerate(zip(logs, folders, strict=True))
    ]


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def end(machines: Machines, jobs: list[subprocess.Popen[bytes]]) -> None:
    for number, job in enumerate(jobs):
        machines.kill(number)
        job.wait()


def durable_on_all(log: Path) -> int:
    """The newest step that this machine reported as durable on all ranks."""
    steps = re.findall(r"^step (\d+) is durable on all ranks", log.read_text(), re.M)
    return int(steps[-1]) if steps else -1


def _is_above(log: Path, step: int) -> bool:
    return log.exists() and durable_on_all(log) > step + 20


def starts(log: Path) -> list[int]:
    return [int(step) for step in re.findall(r"starts at step (\d+)", log.read_text())]


def losses(log: Path) -> dict[tuple[int, int], set[str]]:
    found: dict[tuple[int, int], set[str]] = {}
    for rank, step, loss in re.findall(r"rank (\d) step (\d+): loss ([\d.]+)", log.read_text()):
        found.setdefault((int(rank), int(step)), set()).add(loss)
    return found


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "node-local"])
def test_a_killed_machine(machines: Machines, tmp_path: Path, is_shared: bool) -> None:
    """One machine is killed at any moment. Both continue from one step, with the same losses."""
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    folders = [tmp_path / ("run" if is_shared else f"run{number}") for number in range(2)]
    more = [] if is_shared else ["--replicas", "whole"]
    for killed in (0, 1):
        before = [durable_on_all(log) if log.exists() else -1 for log in logs]
        jobs = start(machines, logs, folders, _ENDLESS, *more)
        wait_for(lambda: all(map(_is_above, logs, before)))  # noqa: B023
        machines.kill(killed)
        time.sleep(0.5)
        end(machines, jobs)
    known = max(map(durable_on_all, logs))
    jobs = start(machines, logs, folders, known + 30, *more)
    assert [job.wait(timeout=90) for job in jobs] == [0, 0]
    assert starts(logs[0]) == starts(logs[1]) and len(starts(logs[0])) == 3
    assert starts(logs[0])[-1] > known
    for log in logs:
        assert all(len(values) == 1 for values in losses(log).values())


def test_a_cut_network(machines: Machines, tmp_path: Path) -> None:
    """Both machines live, and cannot talk: the job ends with an error, and nothing is lost."""
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    folders = [tmp_path / "run"] * 2
    jobs = start(machines, logs, folders, _ENDLESS)
    wait_for(lambda: all(map(_is_above, logs, (20, 20))))
    machines.cut()
    time.sleep(2)
    known = max(map(durable_on_all, logs))
    end(machines, jobs)
    machines.repair()
    jobs = start(machines, logs, folders, known + 30)
    assert [job.wait(timeout=90) for job in jobs] == [0, 0]
    assert starts(logs[0]) == starts(logs[1]) and starts(logs[0])[-1] > known
    for log in logs:
        assert all(len(values) == 1 for values in losses(log).values())
