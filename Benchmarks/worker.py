"""One peer in a process of its own, so that memory figures are its own.

Prints one JSON object on the last line of its standard output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from .peers import PEERS, Peer, Save
from .states import STATES, children, cpu_seconds, forget_peak, resident_byte_count
from .training import Elsewhere, Training, Work


def measure_durable(peer: Peer, saves: int, warm_ups: int, baseline: int) -> dict[str, Any]:
    """Single durable saves, one after another."""
    rows = []
    byte_count = sum(tensor.nbytes for tensor in peer.state.values())
    for step in range(warm_ups + saves):
        forget_peak()
        cpu = cpu_seconds()
        began = time.perf_counter()
        save = peer.save(step)
        returned = time.perf_counter()
        save.wait_staged()
        staged = time.perf_counter()
        save.wait_durable()
        durable = time.perf_counter()
        peak = resident_byte_count("VmHWM")
        peak += sum(resident_byte_count("VmHWM", child) for child in children())
        if step >= warm_ups:
            rows.append(
                {
                    "durable_seconds": durable - began,
                    "megabytes_per_second": byte_count / 1e6 / (durable - began),
                    "call_milliseconds": 1e3 * (returned - began),
                    "blocked_milliseconds": 1e3 * (staged - began),
                    "cpu_seconds": cpu_seconds() - cpu,
                    "extra_byte_count": max(0, peak - baseline),
                }
            )
        peer.remove_before(step + 1)
    return {"byte_count": byte_count, "saves": rows}


def measure_loop(peer: Peer, work: Work, interval: int, steps: int) -> dict[str, Any]:
    """A training loop: the state changes at the end of each step, once the last save has it."""
    plain = _run_loop(peer, work, min(steps, 20), None)
    # Warm: whatever is allocated on the first save is not a loop's steady state.
    warm_up = peer.save(0)
    warm_up.wait_staged()
    warm_up.wait_durable()
    peer.remove_before(1)
    loop = _run_loop(peer, work, steps, interval)
    return {
        "interval": interval,
        "step_count": steps,
        "plain_step_seconds": plain["seconds"] / min(steps, 20),
        "step_seconds": loop["seconds"] / steps,
        "slowdown": (loop["seconds"] / steps) / (plain["seconds"] / min(steps, 20)),
        "drain_seconds": loop["drain_seconds"],
        "saved_count": loop["saved_count"],
        "durable_count": loop["durable_count"],
        "byte_count": sum(tensor.nbytes for tensor in peer.state.values()),
    }


def _run_loop(peer: Peer, work: Work, steps: int, interval: int | None) -> dict[str, Any]:
    """With no interval nothing is saved."""
    pending: list[Save] = []
    saved = durable = 0
    began = time.perf_counter()
    for step in range(steps):
        work.compute()
        if pending:
            pending[-1].wait_staged()
        work.update()
        # In the middle of an interval, so that the last save ends with the loop and not after it.
        if interval is None or step % interval != interval // 2:
            continue
        # Ours has two in flight and decides alone whether to wait; others take one at a time.
        while pending and not peer.takes_many:
            durable += pending.pop(0).wait_durable()
        pending.append(peer.save(step + 1))
        saved += 1
    seconds = time.perf_counter() - began
    durable += sum(save.wait_durable() for save in pending)
    drained = time.perf_counter() - began - seconds
    peer.remove_before(steps + 2)
    return {
        "seconds": seconds, "drain_seconds": drained, "saved_count": saved,
        "durable_count": durable,
    }  # fmt: skip


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m Benchmarks.worker", description=__doc__)
    parser.add_argument("part", choices=["durable", "loop", "training"])
    parser.add_argument("--peer", choices=list(PEERS), required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--state", choices=list(STATES), default="flat")
    parser.add_argument("--saves", type=int, default=1)
    parser.add_argument("--warm-ups", type=int, default=1)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    # What peers print themselves must not be taken for the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    torch.set_num_threads(os.cpu_count() or 1)
    kind = PEERS[options.peer]
    options.directory.mkdir(parents=True, exist_ok=True)
    work: Work = Elsewhere()
    if options.part == "training":
        work = training = Training(options.bytes)
        state = training.state
    else:
        state = STATES[options.state](options.bytes)
    # Before the first figure, so that no peer is charged for its code.
    for name in kind.modules:
        importlib.import_module(name)
    baseline = resident_byte_count()
    try:
        peer = kind(options.directory, state)
        if options.part == "durable":
            result = measure_durable(peer, options.saves, options.warm_ups, baseline)
        else:
            result = measure_loop(peer, work, options.interval, options.steps)
        peer.close()
    finally:
        if not kind.keeps_file:
            shutil.rmtree(options.directory, ignore_errors=True)
    result["tensor_count"] = len(state)
    os.write(answer, (json.dumps(result) + "\n").encode())
    # Some peers leave threads or processes that an ordinary exit would wait for.
    for child in children():
        os.kill(child, signal.SIGTERM)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
