"""How long DCP loads from a PCcheck file and from its own files, and how much each reads.

    OMP_NUM_THREADS=1 python measure_dcp_load.py DIRECTORY ROUNDS [cold]

The state has 340 tensors and 383 MB. ``cold`` drops the files from the page cache before each
load. Each round loads from both, in turns first.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from pccheck.dcp import StorageReader, StorageWriter


def main(folder: Path, rounds: int, is_cold: bool) -> None:
    torch.manual_seed(0)
    shapes = [(1030, 256), (390, 769)] * 170
    state = {f"layer{number:03}": torch.randn(shape) for number, shape in enumerate(shapes)}
    payload = sum(tensor.nbytes for tensor in state.values())
    state["options"] = {"lr": 0.1, "betas": (0.9, 0.99)}
    dcp.save(state, checkpoint_id=folder / "stock")
    with StorageWriter(folder / "run.pcc") as writer:
        dcp.save(state, checkpoint_id=1, storage_writer=writer)
    os.sync()
    seconds: dict[str, list[float]] = {"stock": [], "pccheck": []}
    read: dict[str, float] = {}
    for number in range(rounds):
        for kind in sorted(seconds, reverse=number % 2 == 1):
            if is_cold:
                drop(folder)
            found = {key: torch.zeros_like(state[key]) for key in state if key != "options"}
            found["options"] = {"lr": 0.0, "betas": (0.0, 0.0)}
            source: dict[str, Any] = {"checkpoint_id": folder / "stock"}
            if kind == "pccheck":
                source = {"storage_reader": StorageReader(folder / "run.pcc")}
            before, began = read_count(), time.perf_counter()
            dcp.load(found, **source)
            seconds[kind].append(time.perf_counter() - began)
            read[kind] = (read_count() - before) / payload
            assert all(torch.equal(found[key], state[key]) for key in state if key != "options")
    ratios = [ours / stock for ours, stock in zip(seconds["pccheck"], seconds["stock"])]
    for kind, values in seconds.items():
        print(f"{kind:8} {statistics.median(values):.3f} s, {read[kind]:.3f} bytes read per byte")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def read_count() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def drop(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    directory = Path(sys.argv[1]) / "measured"
    directory.mkdir(parents=True)
    try:
        main(directory, int(sys.argv[2]), "cold" in sys.argv[3:])
    finally:
        shutil.rmtree(directory)
