"""What the tests share: files, damage, children, small file systems."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_levels_are_restored() -> Iterator[None]:
    """A recipe may ask for INFO, which the next test has not asked for."""
    log = logging.getLogger("pccheck")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test keeps its checkpoint file."""
    return tmp_path / "run.pcc"


def pattern(step: int, count: int = 1 << 18) -> np.ndarray:
    """An array whose bytes occur nowhere else, to compare with and to find in the file."""
    return np.random.default_rng(1000 + step).integers(0, 1 << 63, count, dtype=np.int64)


def flip_byte_of(path: Path, step: int) -> None:
    """Damages one byte in the middle of the stored pattern of a step."""
    content = path.read_bytes()
    needle = pattern(step)[1000:1004].tobytes()
    offsets = []
    start = content.find(needle)
    while start >= 0:
        offsets.append(start)
        start = content.find(needle, start + 1)
    assert offsets, f"the pattern of step {step} is not in the file"
    with open(path, "r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(bytes([content[offset] ^ 0x40]))


@pytest.fixture
def run_child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python children; whatever is left is ended with the test."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An own file system of 24 MiB, which only root can make."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount_point)],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """The process that forks ranks."""
    sys.path.insert(0, str(Path(__file__).resolve().parent / "ranks"))
    from gang import Nursery

    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def job(nursery: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts ranks that have joined a job; what is left of them ends with the test."""
    from gang import CONNECT, Gang

    gangs: list[Gang] = []

    def start(world: int, code: str, **arguments: Any) -> Gang:
        gang = Gang(nursery, tmp_path, world, code, before=CONNECT, **arguments)
        gangs.append(gang)
        return gang

    yield start
    for gang in gangs:
        gang.kill()
