"""A file that grows while others use its checkpointer, and what stays as it was when it has grown
or could not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccheck

MIB = 1 << 20


def state(byte_count: int) -> dict[str, Any]:
    return {"x": np.zeros(byte_count, np.uint8)}


def test_threads_that_save_while_the_file_grows(path: Path) -> None:
    """Each save is made, whichever thread is quicker to make room."""
    failures: list[BaseException] = []
    handles: dict[int, pccheck.SaveHandle] = {}
    lock, steps = threading.Lock(), iter(range(1, 1000))

    with pccheck.Checkpointer(path, in_flight=3) as checkpointer:

        def work(factor: float) -> None:
            for round_ in range(10):
                byte_count = int(1000 * factor ** (round_ + 10))
                try:
                    # Steps must not go backwards.
                    with lock:
                        step = next(steps)
                        checkpointer.rewind(0)
                    handles[step] = checkpointer.save(step, state(byte_count))
                except pccheck.StepBackwards:
                    pass
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=work, args=(factor,)) for factor in (1.5, 1.6, 1.1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not failures
    assert all(handle.wait().kind in ("durable", "superseded") for handle in handles.values())
    newest = max(handles.values(), key=lambda handle: handle.sequence)
    assert pccheck.checkpoints(path)[0].step == newest.step


@pytest.mark.parametrize(
    "use",
    [
        lambda checkpointer: checkpointer.stats(),
        lambda checkpointer: checkpointer.rewind(1),
        lambda checkpointer: checkpointer.keep(1, str(checkpointer.path) + ".kept"),
        lambda checkpointer: checkpointer.load(1),
        lambda checkpointer: checkpointer.wait_staged(),
        lambda checkpointer: checkpointer.save(2, {"x": 1}).wait(),
    ],
    ids=["stats", "rewind", "keep", "load", "wait_staged", "save"],
)
def test_a_file_that_grows_is_not_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Any], object]
) -> None:
    with pccheck.Checkpointer(path, retain=4) as checkpointer:
        checkpointer.save(1, {"x": 1}).wait()
        resize, errors = checkpointer._room.resize, list[BaseException]()
        seen: list[bool] = []

        def work() -> None:
            try:
                use(checkpointer)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)

        def slow(*arguments: Any) -> None:
            seen.append(checkpointer.is_open)
            thread.start()
            thread.join(0.3)
            resize(*arguments)

        monkeypatch.setattr(checkpointer._room, "resize", slow)
        checkpointer.save(2, state(3 * MIB)).wait()
        thread.join(60)
        assert not thread.is_alive() and not errors and seen == [True]


def test_one_thread_closes_while_another_makes_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = pccheck.Checkpointer(path, retain=2)
    checkpointer.save(1, {"x": 1}).wait()
    resize, thread = checkpointer._room.resize, threading.Thread(target=checkpointer.close)

    def slow(*arguments: Any) -> None:
        thread.start()
        thread.join(0.2)
        resize(*arguments)

    monkeypatch.setattr(checkpointer._room, "resize", slow)
    try:
        checkpointer.save(2, state(3 * MIB))
    except pccheck.Closed:
        pass
    thread.join(60)
    assert not thread.is_alive() and not checkpointer.is_open
    with pccheck.Checkpointer(path) as again:
        assert again.load(1)["x"] == 1


def test_what_was_counted_and_the_last_step_outlive_a_resize(path: Path) -> None:
    with pccheck.Checkpointer(path, retain=2) as checkpointer:
        for step in (1, 5):
            checkpointer.save(step, {"x": step}).wait()
        before = checkpointer.stats()
        checkpointer.save(6, state(3 * MIB)).wait()
        after = checkpointer.stats()
        assert after["saved_count"] == before["saved_count"] + 1 == 3
        assert after["durable_count"] == 3
        assert after["flush_count"] > before["flush_count"]
        assert [line["step"] for line in after["recent"]] == [1, 5, 6]
        assert after["newest_durable_step"] == 6
        # What training went back to outlives it too.
        checkpointer.rewind(2)
        checkpointer.save(3, state(9 * MIB)).wait()
        assert checkpointer.steps()[0] == 3


def test_a_disk_without_room_to_grow_changes_nothing(small_disk: Path) -> None:
    path = small_disk / "run.pcc"
    with pccheck.Checkpointer(path, retain=2) as checkpointer:
        for step in (1, 5):
            checkpointer.save(step, {"x": step}).wait()
        with pytest.raises(pccheck.TooLarge, match="growing it failed: .*No space left"):
            checkpointer.save(6, state(6 * MIB))
        assert [item.name for item in small_disk.iterdir()] == ["run.pcc"]
        assert checkpointer.load(5)["x"] == 5
        with pytest.raises(pccheck.StepBackwards, match="step 4 is below step 5"):
            checkpointer.save(4, {"x": 4})
        assert checkpointer.save(6, {"x": 6}).wait().durable
        assert checkpointer.stats()["saved_count"] == 3
    assert pccheck.load(path)["x"] == 6
