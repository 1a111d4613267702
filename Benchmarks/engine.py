"""The engine under other parameters: one varied at a time, and the codecs on real weights.

Both measure what ships: `pccheck bench` with its options, and the Python package.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

MIB = 1 << 20
CODECS = ("none", "zstd", "planes-zstd")
_CANCELLED = 32
_COUNTERS = ("payload_byte_count", "stored_byte_count", "compress_nanoseconds")
#: What a sustained run saves in all, at least four checkpoints.
_SUSTAINED_BYTE_COUNT = 1024 * MIB


class Interrupted(Exception):
    """A child was ended by Ctrl-C."""


def bench(tool: Path, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """What one run of `pccheck bench` measured; a `RuntimeError` says why there is nothing."""
    command = [str(tool), "bench", "--json", "--directory", str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == _CANCELLED:
        raise Interrupted
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RuntimeError(lines[-1])
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def _size_text(count: int) -> str:
    return f"{count >> 30} GiB" if count >= 1 << 30 else f"{count // MIB} MiB"


def points(byte_count: int, largest: int) -> Iterator[tuple[str, str, int, list[str]]]:
    """Axis, label, bytes of state and options of each point."""
    for size in (4 * MIB << 2 * power for power in range(6)):
        if size <= largest:
            yield "size", _size_text(size), size, []
    for axis, values in (
        ("in-flight", "1 2 3 4 6 8"), ("writer-workers", "1 2 3 4 6 8"),
        ("chunk", "256KiB 1MiB 4MiB 16MiB 64MiB"), ("backend", "auto direct buffered io_uring"),
        ("codec", " ".join(CODECS)),
    ):  # fmt: skip
        for value in values.split():
            label = value.replace("KiB", " KiB").replace("MiB", " MiB")
            yield axis, label, byte_count, [f"--{axis}", value]


def sweep(
    tool: Path, folder: Path, byte_count: int, largest: int, rounds: int,
    show: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Rates of durable saves, plain writes and sustained saves at each point."""
    rows: list[Row] = [
        {
            "axis": axis, "label": label, "byte_count": size, "options": options, "skipped": None,
            "durable": [], "plain": [], "sustained": [],
        }
        for axis, label, size, options in points(byte_count, largest)
    ]  # fmt: skip
    # An axis at a time, its points in turn within each round.
    for axis in dict.fromkeys(row["axis"] for row in rows):
        for number in range(1, rounds + 1):
            for row in rows:
                if row["axis"] == axis and row["skipped"] is None:
                    show(f"sweep of {axis}, {row['label']}, round {number}/{rounds}")
                    _measure_point(tool, folder, row)
    return rows


def _measure_point(tool: Path, folder: Path, row: Row) -> None:
    size = row["byte_count"]
    count = max(4, min(40, _SUSTAINED_BYTE_COUNT // size))
    arguments = [
        "--only", "durable", "loop", "--rounds", "1", "--fio-settings", "none",
        "--size", str(size), "--loop-size", str(size), "--loop-steps", str(count),
        # A loop that does nothing but save keeps as many in flight as it may.
        "--step", "sleep", "--step-milliseconds", "1", "--interval", "1", "--policy", "wait",
        *row["options"],
    ]  # fmt: skip
    if "--in-flight" not in arguments:
        arguments += ["--in-flight", "1"]
    try:
        measured = bench(tool, folder, arguments)
    except RuntimeError as error:
        if row["axis"] != "backend":
            raise
        row["skipped"] = str(error)
        return
    reason = measured["settings"]["backend_fallback_reason"]
    if row["axis"] == "backend" and reason:
        row["skipped"] = reason
        return
    (durable,), (loop,) = measured["durable"], measured["loop"]["cases"]
    seconds = loop["checkpointed_seconds"]["median"] + loop["drain_seconds"]["median"]
    row["durable"].append(durable["checkpoint_megabytes_per_second"]["median"])
    row["plain"].append(durable["plain_megabytes_per_second"]["median"])
    row["sustained"].append(loop["durable_count"] * size / seconds / 1e6)


def codecs(weights: Path, folder: Path, rounds: int) -> Row:
    """What each codec makes of a safetensors file of weights, and how quickly it is durable."""
    import torch
    from safetensors.torch import load_file

    import pccheck.torch

    module = torch.nn.Module()
    state = load_file(weights)
    for index, tensor in enumerate(state.values()):
        module.register_parameter(f"p{index}", torch.nn.Parameter(tensor, requires_grad=False))
    byte_count = sum(tensor.nbytes for tensor in state.values())
    types = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    rows: list[Row] = [{"codec": codec, "durable": [], "compress": []} for codec in CODECS]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for number in range(rounds):
            for row in rows:
                checkpointer = pccheck.torch.Checkpointer(
                    Path(place, f"{row['codec']}.pcc"), codec=row["codec"]
                )
                with checkpointer:
                    # The first save makes the file, or finds its slots again.
                    checkpointer.save(2 * number, rng=False, model=module).wait()
                    before = checkpointer.stats()
                    began = time.perf_counter()
                    handle = checkpointer.save(2 * number + 1, rng=False, model=module)
                    assert handle.wait().durable
                    seconds = time.perf_counter() - began
                    after = checkpointer.stats()
                spent = {key: after[key] - before[key] for key in _COUNTERS}
                row["durable"].append(byte_count / seconds / 1e6)
                row["ratio"] = spent["payload_byte_count"] / spent["stored_byte_count"]
                if spent["compress_nanoseconds"]:
                    row["compress"].append(byte_count / spent["compress_nanoseconds"] * 1e3)
                # A codec that cannot be read back has no ratio.
                if number == 0:
                    pccheck.load(Path(place, f"{row['codec']}.pcc"))
    return {
        "path": str(weights), "element_types": ", ".join(types), "byte_count": byte_count,
        "tensor_count": len(state), "codecs": rows,
    }  # fmt: skip
