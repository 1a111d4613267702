"""Starts the ranks of a job as forks of a process that has torch loaded: in 0.1 s, not in 3 s.

It reads one line of JSON for each request, and answers with one:

    {"run": CODE, "world": 2, "folder": …, "out": …, "arguments": {…}} → {"pids": [...]}
    {"wait": [pids], "seconds": 10} → {"statuses": [...]}: None for one that still runs

The code of a rank is run with what ``job.py`` has, and ``rank``, ``world``, ``folder``, and the
arguments by name. What it prints goes to ``OUT/rank-0.out``, and its log to ``OUT/rank-0.err``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from typing import Any

import job
import torch


def child(request: dict[str, Any], rank: int) -> None:
    """Becomes a rank of the job; the interpreter ends as that of any program."""
    out = request["out"]
    for number, suffix in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{out}/rank-{rank}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    names = {name: getattr(job, name) for name in dir(job) if not name.startswith("__")}
    names.update(
        rank=rank, world=request["world"], folder=request["folder"],
        __name__="__main__", **request["arguments"],
    )  # fmt: skip
    exec(compile(request["run"], "<rank>", "exec"), names)


def start(request: dict[str, Any]) -> list[int]:
    """Forks the ranks; returns their process numbers."""
    pids = []
    for rank in range(request["world"]):
        pid = os.fork()
        if pid == 0:
            try:
                child(request, rank)
            except SystemExit:
                raise
            except BaseException:
                traceback.print_exc()
                raise SystemExit(1) from None
            raise SystemExit(0)
        pids.append(pid)
    return pids


def wait(pids: list[int], seconds: float) -> list[int | None]:
    """The exit statuses; negative for signals, None for what still runs."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while True:
        for pid in pids:
            if pid not in statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
        if len(statuses) == len(pids) or time.monotonic() >= deadline:
            return [statuses.get(pid) for pid in pids]
        time.sleep(0.005)


def main() -> None:
    torch.set_num_threads(1)
    # What torch imports at the first step, each rank would import again.
    training = job.Training(0)
    training.head(training.model(torch.randn(3, 8))).sum().backward()
    training.optimizer.step()
    training.optimizer.state_dict()
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            answer: dict[str, Any] = {"pids": start(request)}
        else:
            answer = {"statuses": wait(request["wait"], request["seconds"])}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
