"""Opening a file to go on with it: the newest checkpoint is read once, by the resume."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import flip_byte_of, pattern

import pccheck

BYTE_COUNT = 32 << 20


def state(step: int) -> dict[str, object]:
    return {"x": pattern(step, BYTE_COUNT // 8)}


def read_count() -> int:
    """Bytes that this process has read, from any file."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, value = line.split(": ")
        if name == "rchar":
            return int(value)
    raise AssertionError("the kernel counts no reads")


def recovered(checkpointer: pccheck.Checkpointer) -> tuple[int, int, bool] | None:
    assert checkpointer._engine is not None
    found = checkpointer._engine.recovered()
    return None if found is None else (found.sequence, found.step, found.is_verified)


def test_opening_and_resuming_read_it_once(path: Path) -> None:
    with pccheck.Checkpointer(path, capacity=BYTE_COUNT + (1 << 20)) as checkpointer:
        assert recovered(checkpointer) is None
        for step in (1, 2):
            checkpointer.save(step, state(step)).wait()
    before = read_count()
    with pccheck.Checkpointer(path) as checkpointer:
        opened = read_count()
        assert opened - before < BYTE_COUNT // 4
        assert recovered(checkpointer) == (2, 2, False)
        start, found = checkpointer.resume()
        assert start == 3 and (found["x"] == state(2)["x"]).all()
        assert read_count() - opened < BYTE_COUNT * 5 // 4
        assert checkpointer.save(3, state(3)).wait().durable


def test_what_a_resume_falls_back_to_outlives_a_kill(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state(step)).wait()
    flip_byte_of(path, 2)
    child = os.fork()
    if child == 0:
        # Dies with as many saves in flight as the file takes.
        try:
            checkpointer = pccheck.Checkpointer(path, on_busy="skip")
            for step in (3, 4, 5):
                checkpointer.save(step, state(step))
        finally:
            os._exit(9)
    assert os.waitpid(child, 0)[1] == 9 << 8
    with pccheck.Checkpointer(path) as checkpointer:
        start, found = checkpointer.resume()
        # Or a newer one that became whole before the end.
        assert start - 1 in (1, 3, 4, 5) and (found["x"] == state(start - 1)["x"]).all()


def test_without_a_second_slot_in_flight_opening_verifies(path: Path) -> None:
    with pccheck.Checkpointer(path, in_flight=1) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state(step)).wait()
    with pccheck.Checkpointer(path) as checkpointer:
        assert recovered(checkpointer) == (2, 2, True)
    flip_byte_of(path, 2)
    with pccheck.Checkpointer(path) as checkpointer:
        assert recovered(checkpointer) == (1, 1, True)
        assert checkpointer.resume()[0] == 2
