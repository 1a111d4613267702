"""Jobs of several gloo ranks on the CPU: python SCRIPT DIRECTORY TASK:WORLD…

A job that is to fail, because a rank of it kills itself, is TASK:WORLD:fails.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

#: What a rank does: its rank, how many there are, and the directory of the job.
Task = Callable[[int, int, str], None]


def main(tasks: dict[str, Task]) -> None:
    """Runs the jobs that the command line names, one after the other."""
    for job in sys.argv[2:]:
        task, count, *fails = job.split(":")
        if _run(sys.argv[1], task, tasks[task], int(count)) == bool(fails):
            sys.exit(f"{job}: {'nothing failed' if fails else 'failed'}")


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


def run_jobs(script: Path, directory: Path, *jobs: str, **environment: str) -> None:
    """Runs jobs in a process of their own, and shows what they wrote when one fails."""
    result = subprocess.run(
        [sys.executable, str(script), str(directory), *jobs],
        capture_output=True, text=True, timeout=180, env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
