"""What ``save`` takes of the loop for each kind of state: time, and memory beside the pool.

    python -m Benchmarks.kinds --directory /data --bytes 268435456 1073741824

Prints a Markdown table: the first save of a new file, and the median of later ones. Each row is a
process of its own; the rows are taken in turn within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from . import machine
from .states import forget_peak, resident_byte_count

MIB = 1 << 20
KINDS = ("module", "state_dict", "plain", "arrays", "torch.save")
_WIDTH = 1024
#: A weight of such a layer and its two moments, in bytes.
_LAYER_BYTE_COUNT = 3 * 4 * _WIDTH * _WIDTH


class Run:
    """A model, an optimizer that has taken steps, and what is saved of them."""

    def __init__(self, kind: str, byte_count: int) -> None:
        count = max(1, byte_count // _LAYER_BYTE_COUNT)
        layers = [torch.nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(count)]
        self.model = torch.nn.Sequential(*layers)
        # One tensor after another: what a step allocates must not hide what a save does.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=False)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.tensors: dict[str, torch.Tensor] = {}
        if kind in ("plain", "arrays"):
            states = [self.model.state_dict(), *self.optimizer.state_dict()["state"].values()]
            for number, state in enumerate(states):
                self.tensors |= {f"{number}.{key}": item.clone() for key, item in state.items()}
            del self.model, self.optimizer
        self.kind = kind

    def step(self) -> None:
        """What a loop does between two saves."""
        if self.kind not in ("plain", "arrays"):
            self.optimizer.step()
            return
        for tensor in self.tensors.values():
            tensor.add_(1)

    def state(self) -> dict[str, Any]:
        """What ``save`` is given."""
        if self.kind == "module":
            return {"model": self.model, "optimizer": self.optimizer}
        if self.kind == "plain":
            return {"state": self.tensors}
        if self.kind == "arrays":
            return {"state": {name: item.numpy() for name, item in self.tensors.items()}}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def measure(kind: str, byte_count: int, pool: int, directory: Path, saves: int) -> list[Any]:
    """One row per save: milliseconds until it returned, was staged, was durable; peak memory."""
    run = Run(kind, byte_count)
    path = directory / "run"
    rows = []
    if kind == "torch.save":
        begin = _torch_save(path)
    else:
        import pccheck.torch as pcc

        checkpointer = pcc.Checkpointer(path, pool=pool)
        begin = lambda step: checkpointer.save(step, **run.state())  # noqa: E731
    run.step()
    before = resident_byte_count()
    for step in range(saves):
        forget_peak()
        began = time.perf_counter()
        handle = begin(step) if kind != "torch.save" else begin(run.state())
        times = [time.perf_counter()]
        for wait in (handle.wait_staged, handle.wait) if handle is not None else ():
            wait()
            times.append(time.perf_counter())
        blocked, staged, durable = [1e3 * (each - began) for each in (*times, *times, *times)[:3]]
        rows.append([blocked, staged, durable, resident_byte_count("VmHWM") - before])
        run.step()
    return rows


def _torch_save(path: Path) -> Callable[[Any], Any]:
    def begin(state: Any) -> None:
        with open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    return begin


def memcpy_rate(byte_count: int = 256 * MIB) -> float:
    """GB/s of a copy between two buffers that are there, by one thread; the best of five."""
    source, target = (torch.ones(byte_count, dtype=torch.uint8) for _ in range(2))
    torch.set_num_threads(1)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return byte_count / 1e9 / min(times)


def _in_a_process(kind: str, byte_count: int, pool: int, directory: Path, saves: int) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="pccheck-kinds-", dir=directory))
    command = [
        sys.executable, "-m", "Benchmarks.kinds", "--directory", str(folder), "--worker", kind,
        "--bytes", str(byte_count), "--pool", str(pool), "--saves", str(saves),
    ]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(result.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _table(results: dict[tuple[str, int, str], list[Any]]) -> str:
    lines = [
        "| state | size | pool | first save: blocked, durable ms | later: blocked ms "
        "| staged ms | durable ms | memory beside the pool |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, byte_count, pool), runs in results.items():
        first = [statistics.median(run[0][index] for run in runs) for index in range(3)]
        rows = [row for run in runs for row in run[1:]]
        later = [sorted(row[index] for row in rows) for index in range(3)]
        blocked, staged, durable = (f"{statistics.median(each):.1f}" for each in later)
        peak = statistics.median(max(row[3] for row in run) for run in runs)
        pool_byte_count = 0 if kind == "torch.save" else _pool(byte_count, pool)
        lines.append(
            f"| {kind} | {byte_count // MIB} MiB | {'–' if kind == 'torch.save' else pool} "
            f"| {first[0]:.0f}, {first[2]:.0f} "
            f"| {blocked} ({later[0][0]:.1f}–{later[0][-1]:.1f}) | {staged} | {durable} "
            f"| {max(0, peak - pool_byte_count) / MIB:.0f} MiB |"
        )
    return "\n".join(lines)


def _pool(byte_count: int, pool: str) -> int:
    return byte_count + 8 * MIB if pool == "state" else 32 * MIB


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m Benchmarks.kinds", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("."))
    parser.add_argument("--bytes", type=int, nargs="+", default=[256 * MIB, 1024 * MIB])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        rows = measure(
            options.worker, options.bytes[0], options.pool, options.directory, options.saves
        )
        print(json.dumps(rows), flush=True)
        return
    results: dict[tuple[str, int, str], list[Any]] = {}
    for _ in range(options.rounds):
        for byte_count in options.bytes:
            for kind in options.kind:
                for pool in ("state",) if kind == "torch.save" else ("state", "32 MiB"):
                    rows = _in_a_process(
                        kind, byte_count, _pool(byte_count, pool), options.directory,
                        options.saves,
                    )  # fmt: skip
                    results.setdefault((kind, byte_count, pool), []).append(rows)
    print(_table(results))
    probe = options.directory / "pccheck-kinds-probe"
    try:
        rates = [machine.fio_rate(probe, 256 * MIB, *each) for each in machine.FIO_SETTINGS]
    except FileNotFoundError:
        rates = []
    finally:
        probe.unlink(missing_ok=True)
    fio = max((rate for rate in rates if rate), default=None)
    print(f"\nmemcpy {memcpy_rate():.1f} GB/s; fio {f'{fio:.0f} MB/s' if fio else 'missing'}")


if __name__ == "__main__":
    main()
