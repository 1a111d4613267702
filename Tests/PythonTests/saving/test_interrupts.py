"""Ctrl-C, and forks, at the lines of save, load, resume and close: see interrupting.py.

A sample of the places runs here; PCCHECK_INTERRUPTS=all takes every line, and an hour.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import interrupting
import pytest

IS_ALL = os.environ.get("PCCHECK_INTERRUPTS") == "all"
#: Of every action, in lines: with the byte codes, six times as many.
LEAST_PLACES = 200
SECONDS = 6 * 3600 if IS_ALL else 900


def strike(path: Path, actions: str, blow: str, unit: str, first: int, stride: int) -> int:
    """How many places were struck; a crash, a hang or what does not hold is a failure."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", interrupting.__file__, path, actions, blow, unit,
         str(first), str(stride)],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _, _ in counts] == actions.split(",")
    least = LEAST_PLACES * (6 if unit == "opcode" else 1)
    for name, places, _ in counts:
        assert int(places) >= least or name == "look", f"{name}: fewer places than there are"
    return sum(int(struck) for _, _, struck in counts)


ACTIONS = ",".join(interrupting.ACTIONS)


# Strides that have no factor in common with the turns of a loop.
@pytest.mark.parametrize(
    ("blow", "unit", "stride", "stride_of_all", "least"),
    [
        ("raise", "line", 53, 1, 300), ("raise", "opcode", 509, 23, 200),
        ("fork", "line", 211, 17, 70),
    ],
)  # fmt: skip
def test_places(
    path: Path, blow: str, unit: str, stride: int, stride_of_all: int, least: int
) -> None:
    assert strike(path, ACTIONS, blow, unit, 1, stride_of_all if IS_ALL else stride) >= least
