"""Jobs of several gloo ranks on the CPU: TASK:WORLD.

A job that is to fail, because a rank of it kills itself, is TASK:WORLD:fails.

A script has the tasks, and ends with ``main(TASKS)``. It is started once in each process of the
tests, imports torch, and forks the ranks of every job from there: the imports take longer than the
jobs. It reads one line of JSON for each request, and answers with the exit status of its jobs.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

#: What a rank does: its rank, how many there are, and the directory of the job.
Task = Callable[[int, int, str], None]

_SECONDS = 180


# -- in the script


def main(tasks: dict[str, Task]) -> None:
    """Answers requests until there are no more."""
    # What each rank would import at its first step.
    import torch._dynamo
    import torch.distributed.fsdp

    assert torch._dynamo and torch.distributed.fsdp
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run_all(json.loads(line), tasks)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run_all(request: dict[str, Any], tasks: dict[str, Task]) -> NoReturn:
    """Runs the jobs of a request, one after the other, in a process that begins and ends here."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    status = 0
    try:
        for job in request["jobs"]:
            name, count, *fails = job.split(":")
            if _run(request["directory"], name, tasks[name], int(count)) == bool(fails):
                raise SystemExit(f"{job}: {'nothing failed' if fails else 'failed'}")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(directory: str, name: str, task: Task, world: int) -> bool:
    # Forked, so that torch is imported once; nothing has started a thread yet.
    ranks = [
        multiprocessing.get_context("fork").Process(
            target=_run_rank, args=(rank, world, directory, name, task)
        )
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return all(process.exitcode == 0 for process in ranks)


def _run_rank(rank: int, world: int, directory: str, name: str, task: Task) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous-{os.getppid()}-{name}-{world}",
        rank=rank, world_size=world, timeout=timedelta(seconds=150),
    )  # fmt: skip
    task(rank, world, directory)
    dist.barrier()
    dist.destroy_process_group()


# -- in the test

_scripts: dict[Path, subprocess.Popen[bytes]] = {}


def run_jobs(script: Path, directory: Path, *jobs: str, **environment: str) -> None:
    """Runs jobs of a script, one after the other, and shows what they wrote when one fails."""
    if script not in _scripts:
        # In a session of its own, so that all of it can be killed.
        _scripts[script] = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    process = _scripts[script]
    log = directory / "jobs.log"
    request = {
        "directory": str(directory), "jobs": jobs, "environment": environment, "log": str(log),
    }  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    answer = b"none in time"
    if select.select([process.stdout], [], [], _SECONDS)[0]:
        answer = process.stdout.readline()
    if answer != b"0\n":
        # What a failed job left must not reach the next one.
        os.killpg(process.pid, signal.SIGKILL)
        _scripts.pop(script).wait()
    assert answer == b"0\n", f"{answer!r}\n{log.read_text() if log.exists() else ''}"


@atexit.register
def _end_scripts() -> None:
    for process in _scripts.values():
        process.communicate()
