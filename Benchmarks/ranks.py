"""What a group costs: the exchange of one save on many processes, and the loop of two ranks.

    python -m Benchmarks.ranks exchange --ranks 2 8 32 128 256
    python -m Benchmarks.ranks loop --rounds 5
    python -m Benchmarks.ranks scale --ranks 4096 16384

All processes are forks on one machine, so that large numbers of ranks share its few cores: the
times are upper bounds for ranks with a core each. ``scale`` simulates more ranks than fit here,
with the latency of two measured ranks for each step of the exchange.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Saves:
    """What the simulated ranks do."""

    count: int = 500
    #: Seconds from one save to the next.
    interval: float = 10.0
    #: Median seconds until a part is durable, and the spread of their logarithms between ranks
    #: and saves: with 0.5 one part in a thousand takes five times as long.
    durable: float = 4.0
    spread: float = 0.5


def scale(ranks: int, saves: Saves, step_seconds: float, seed: int) -> dict[str, float]:
    """How far verdicts lag behind a rank's own part, and how many slots that takes.

    An AND over n ranks is a reduction and a broadcast in a tree: 2·⌈log2 n⌉ steps (Thakur,
    Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005).
    That of a save begins on a rank when its part is durable and the one before has ended, and ends
    when the last rank has begun it and the steps are over.
    """
    draw = np.random.default_rng(seed)
    exchange_seconds = 2 * math.ceil(math.log2(ranks)) * step_seconds
    verdict = 0.0
    lags, verdicts, outstanding = [], [], 0
    for number in range(saves.count):
        parts = saves.durable * draw.lognormal(0.0, saves.spread, ranks)
        ends = number * saves.interval + parts
        verdict = max(float(ends.max()), verdict) + exchange_seconds
        lags.append(np.median(verdict - ends))
        verdicts.append(verdict)
        # Saves whose slots the fastest rank cannot use yet, when it begins one more.
        now = number * saves.interval
        outstanding = max(outstanding, sum(earlier > now for earlier in verdicts))
    return {
        "ranks": ranks, "exchange_us": 1e6 * exchange_seconds,
        "verdict_lag_s": float(np.median(lags)), "verdict_after_s": float(np.median(verdicts - (
            np.arange(saves.count) * saves.interval))),
        "undecided_saves": outstanding,
    }  # fmt: skip


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
    scaling = parts.add_parser("scale")
    scaling.add_argument("--ranks", type=int, nargs="+", default=[4096, 16384])
    scaling.add_argument("--step-us", type=float, default=None, help="measured when left out")
    for name, value in vars(Saves()).items():
        scaling.add_argument(f"--{name}", type=type(value), default=value)
    scaling.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.part == "scale":
        saves = Saves(options.count, options.interval, options.durable, options.spread)
        # Two ranks take a step each way.
        step = options.step_us or exchange(2, 200)["result_us"] / 2
        for count in options.ranks:
            print(json.dumps(scale(count, saves, step / 1e6, options.seed)), flush=True)
        return
    if options.part == "loop":
        print(json.dumps(loop(options)))
        return
    for count in options.ranks:
        print(json.dumps(exchange(count, options.repetitions)), flush=True)


if __name__ == "__main__":
    main()
