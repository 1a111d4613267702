"""The states that are saved, and what saving them does to this process's memory."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch

_LAYER_COUNT = 12
_VOCABULARY = 8192
_MOMENTS = ("", ".exp_avg", ".exp_avg_sq")


def flat_state(byte_count: int) -> dict[str, torch.Tensor]:
    """One tensor."""
    return {"flat": _filled((byte_count // 4,), 0)}


def model_state(byte_count: int) -> dict[str, torch.Tensor]:
    """Weights and two Adam moments of a GPT of about this size: more than 400 tensors."""
    width = _width(byte_count)
    shapes = dict(_shapes(width))
    names = [name + moment for moment in _MOMENTS for name in shapes]
    return {
        name: _filled(shapes[name.removesuffix(".exp_avg").removesuffix(".exp_avg_sq")], seed)
        for seed, name in enumerate(names)
    }


def _shapes(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "embedding.weight", (_vocabulary(width), width)
    yield "positions.weight", (64, width)
    for layer in range(_LAYER_COUNT):
        for name, shape in (
            ("norm_attention.weight", (width,)), ("norm_attention.bias", (width,)),
            ("qkv.weight", (3 * width, width)), ("qkv.bias", (3 * width,)),
            ("project.weight", (width, width)), ("project.bias", (width,)),
            ("norm_feed.weight", (width,)), ("norm_feed.bias", (width,)),
            ("feed_in.weight", (4 * width, width)), ("feed_in.bias", (4 * width,)),
            ("feed_out.weight", (width, 4 * width)), ("feed_out.bias", (width,)),
        ):  # fmt: skip
            yield f"layers.{layer}.{name}", shape
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)


def _vocabulary(width: int) -> int:
    return min(_VOCABULARY, 32 * width)


def _width(byte_count: int) -> int:
    """The width whose state comes closest to a size from below."""
    width = 8
    while True:
        wider = width + 8
        count = sum(math.prod(shape) for _, shape in _shapes(wider))
        if count * 4 * len(_MOMENTS) > byte_count:
            return width
        width = wider


def _filled(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values that no file system or device can shrink, made quickly: words of a counter, mixed."""
    count = math.prod(shape)
    words = torch.arange(count, dtype=torch.int32)
    words.mul_(-1640531527).add_(seed * 40503)
    # An exponent around 1, so that no value is infinite or not a number.
    words.bitwise_and_(0x007FFFFF).bitwise_or_(0x3F000000)
    return words.view(torch.float32).view(shape)


STATES = {"flat": flat_state, "model": model_state}


def resident_byte_count(field: str = "VmRSS", process: int | str = "self") -> int:
    """Resident memory of a process: now, or with ``VmHWM`` at its peak."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    match = re.search(field + r":\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0


def forget_peak() -> None:
    """Lets the peak begin again."""
    Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    """What this process and those it started have used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in children():
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def children() -> list[int]:
    """Processes that this one has started."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
        except OSError:
            continue  # a thread that has ended since it was listed
    return found
