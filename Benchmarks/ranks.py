"""What a group costs: the exchange of one save on many processes, and the loop of two ranks.

    python -m Benchmarks.ranks exchange --ranks 2 8 32 128 256
    python -m Benchmarks.ranks loop --rounds 5

All processes are forks on one machine, so that large numbers of ranks share its few cores: the
times are upper bounds for ranks with a core each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

import pccheck.distributed
import pccheck.torch

#: The words of the exchange of a save: spec/GROUP.md, "While training".
_WORD_COUNT = 5
_WARM_UP = 5
_MEGABYTES = 1 << 20


def forked(count: int, work: Callable[[int, Path], Any]) -> list[Any]:
    """Runs ``work`` as so many ranks; what each returned, by rank."""
    folder = Path(tempfile.mkdtemp(prefix="pcc-ranks-"))
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                store = FileStore(str(folder / "store"), count)
                dist.init_process_group(
                    "gloo", store=store, rank=rank, world_size=count,
                    timeout=timedelta(minutes=10),
                )  # fmt: skip
                (folder / f"{rank}.json").write_text(json.dumps(work(rank, folder)))
                dist.barrier()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                # Not through the interpreter's end, which another rank's end could hold up.
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    try:
        ended = [os.waitpid(child, 0)[1] for child in children]
        if any(ended):
            raise RuntimeError(f"{sum(map(bool, ended))} of {count} ranks failed")
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    finally:
        shutil.rmtree(folder)


def exchange(count: int, repetitions: int) -> dict[str, float]:
    """Microseconds to begin one AND, and until its result is there: medians over the ranks."""

    def work(rank: int, folder: Path) -> list[list[float]]:
        transport = pccheck.distributed.TorchTransport()
        transport.gather(b"", 600)
        transport.open_channels(["ends"], 600)
        rows = []
        for number in range(_WARM_UP + repetitions):
            began = time.perf_counter()
            pending = transport.begin_and("ends", [number] * _WORD_COUNT)
            launched = time.perf_counter()
            pending.wait(None)
            rows.append([launched - began, time.perf_counter() - began])
            time.sleep(0.002)
        return rows[_WARM_UP:]

    rows = [row for rank in forked(count, work) for row in rank]
    return {
        "ranks": count,
        "begin_us": 1e6 * statistics.median(row[0] for row in rows),
        "result_us": 1e6 * statistics.median(row[1] for row in rows),
        "bytes": 8 * _WORD_COUNT,
    }


class _Loop:
    """Steps of a fixed time, of which some save; the state is replicated on both ranks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.steps, self.every, self.step_seconds = options.steps, options.every, options.step
        self.byte_count = options.megabytes * _MEGABYTES

    def seconds(self, is_group: bool) -> float:
        """How long the loop of two ranks takes, on the slower one."""

        def work(rank: int, folder: Path) -> float:
            target = Path(folder / "run")
            if is_group:
                ckpt: Any = pccheck.distributed.Checkpointer(target, replicas="whole")
            else:
                ckpt = pccheck.torch.Checkpointer(folder / f"{rank}.pcc", retain=2)
            weights = torch.nn.Parameter(torch.zeros(self.byte_count // 4))
            with ckpt:
                ckpt.save(0, weights=weights).wait()
                dist.barrier()
                began = time.perf_counter()
                for step in range(1, self.steps + 1):
                    self._train(weights)
                    if step % self.every == 0:
                        ckpt.save(step, weights=weights)
                took = time.perf_counter() - began
            return took

        seconds: list[float] = forked(2, work)
        return max(seconds)

    def _train(self, weights: torch.Tensor) -> None:
        """Computes for a fixed time, and ends as a training step does: with a collective."""
        end = time.perf_counter() + self.step_seconds
        part = weights.detach()[: 1 << 16].clone()
        while time.perf_counter() < end:
            part.mul_(1.0001)
        dist.all_reduce(part)


def loop(options: argparse.Namespace) -> dict[str, Any]:
    """The time of the loop with a group over that without one: each round measures both."""
    measured = _Loop(options)
    ratios = []
    for number in range(options.rounds):
        order = [True, False] if number % 2 else [False, True]
        seconds = {is_group: measured.seconds(is_group) for is_group in order}
        ratios.append(seconds[True] / seconds[False])
        print(f"round {number + 1}: {ratios[-1]:.4f}", flush=True)
    return {"ratios": ratios, "median": statistics.median(ratios)}


def main() -> None:
    """Prints one line of JSON for each measurement."""
    parser = argparse.ArgumentParser(prog="python -m Benchmarks.ranks", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    exchanging = parts.add_parser("exchange")
    exchanging.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 32, 128])
    exchanging.add_argument("--repetitions", type=int, default=50)
    looping = parts.add_parser("loop")
    looping.add_argument("--rounds", type=int, default=5)
    looping.add_argument("--steps", type=int, default=60)
    looping.add_argument("--every", type=int, default=5)
    looping.add_argument("--step", type=float, default=0.05, help="seconds of a step")
    looping.add_argument("--megabytes", type=int, default=64)
    options = parser.parse_args()
    if options.part == "loop":
        print(json.dumps(loop(options)))
        return
    for count in options.ranks:
        print(json.dumps(exchange(count, options.repetitions)), flush=True)


if __name__ == "__main__":
    main()
