"""Other code that runs in the middle of a save, beside it, or at the end of the process."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pccheck
import pccheck.torch as pcc
import pytest
import torch

PARTS = {"x": torch.arange(4000.0), "y": {"z": torch.ones(9)}}


class Part:
    """A part whose state is read while something else happens."""

    def __init__(self, event: Callable[[], None]) -> None:
        self._event = event

    def state_dict(self) -> dict[str, Any]:
        self._event()
        return {"value": 7}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {"value": 7}


class Finalized:
    """An object in a cycle, which a collection ends."""

    def __init__(self, event: Callable[[], None]) -> None:
        self._event = event
        self._self = self

    def __del__(self) -> None:
        self._event()


# -- in the middle of a save


def by_collection(event: Callable[[], None]) -> Callable[[], None]:
    def happen() -> None:
        Finalized(event)
        gc.collect()

    return happen


def by_weak_reference(event: Callable[[], None]) -> Callable[[], None]:
    def happen() -> None:
        class Watched:
            pass

        watched = Watched()
        reference = weakref.ref(watched, lambda _: event())
        del watched
        assert reference() is None

    return happen


def by_signal(event: Callable[[], None]) -> Callable[[], None]:
    def happen() -> None:
        before = signal.signal(signal.SIGUSR1, lambda *_: event())
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    return happen


WAYS = [by_collection, by_weak_reference, by_signal]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["save", "close", "load", "resume", "stats", "other"])
def test_what_runs_inside_of_a_save(
    path: Path, tmp_path: Path, way: Callable[[Callable[[], None]], Callable[[], None]], what: str
) -> None:
    said: list[str] = []
    checkpointer = pcc.Checkpointer(path, retain=3)
    other = pcc.Checkpointer(tmp_path / "other.pcc", capacity="1 MiB")
    uses: dict[str, Callable[[], object]] = {
        "save": lambda: checkpointer.save(2, **PARTS),
        "close": checkpointer.close,
        "load": lambda: checkpointer.load(1),
        "resume": lambda: checkpointer.resume(x=torch.zeros(4000), strict=False),
        "stats": checkpointer.stats,
        "other": lambda: other.save(1, **PARTS).wait(),
    }

    def event() -> None:
        try:
            uses[what]()
            said.append("done")
        except pccheck.CheckpointError as error:
            said.append(f"{type(error).__name__}: {error}")

    checkpointer.save(1, **PARTS).wait()
    if what == "close":
        with pytest.raises(pccheck.Closed):
            checkpointer.save(3, part=Part(way(event)), **PARTS)
        assert said == ["done"]
    else:
        checkpointer.save(3, part=Part(way(event)), **PARTS).wait()
        assert said[0].startswith("CheckpointError: ") if what == "save" else said == ["done"]
        checkpointer.save(4, **PARTS).wait()
    checkpointer.close()
    other.close()
    newest = pcc.load(path)
    assert torch.equal(newest["x"], PARTS["x"])
    assert pccheck.checkpoints(path)[0].step == (1 if what == "close" else 4)


def test_a_storm_of_signals_changes_nothing(path: Path) -> None:
    """Every call is interrupted, and the handler's bytes go to a descriptor meanwhile."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1

    before = signal.signal(signal.SIGALRM, handler)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        began, step = time.monotonic(), 0
        while time.monotonic() - began < 2:
            with pcc.Checkpointer(path) as checkpointer:
                for _ in range(5):
                    step += 1
                    checkpointer.save(step, **PARTS, at=step)
            assert pcc.load(path)["at"] == step
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGALRM, before)
        reader.close()
        writer.close()
    assert count > 100


def test_an_interrupt_of_an_event_loop(path: Path) -> None:
    async def train(checkpointer: pcc.Checkpointer) -> None:
        for step in range(1, 10**6):
            handle = checkpointer.save(step, **PARTS)
            if step % 7 == 0:
                await asyncio.to_thread(handle.wait)
            if step == 30:
                signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)

    checkpointer = pcc.Checkpointer(path)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(train(checkpointer))
    assert checkpointer.save(10**6, **PARTS).wait().durable
    checkpointer.close()


# -- beside a save


def run_all(bodies: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[body]) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    assert not failures, failures


@pytest.mark.parametrize("module", [pccheck, pcc])
def test_threads_that_save_with_one_checkpointer(path: Path, module: Any) -> None:
    steps = iter(range(1, 10**6))
    durable: list[int] = []

    def save() -> None:
        for _ in range(40):
            step = next(steps)
            state = {"x": torch.full((500,), float(step)), "at": step}
            try:
                if module is pcc:
                    handle = checkpointer.save(step, **state)
                else:
                    handle = checkpointer.save(step, {"x": state["x"].numpy(), "at": step})
            except pccheck.StepBackwards:
                # The other one was quicker.
                continue
            if handle.wait().durable:
                durable.append(step)

    with module.Checkpointer(path, in_flight=3) as checkpointer:
        run_all([save, save, save])
    found = pccheck.load(path)
    assert found["at"] == max(durable)
    assert (np.asarray(found["x"]) == found["at"]).all()


@pytest.mark.parametrize("module", [pccheck, pcc])
def test_a_close_beside_saves(path: Path, module: Any) -> None:
    for turn in range(15):
        checkpointer = module.Checkpointer(path, in_flight=3)
        handles: list[pccheck.SaveHandle] = []

        def save(
            checkpointer: Any = checkpointer, handles: Any = handles, turn: int = turn
        ) -> None:
            with pytest.raises(pccheck.Closed):
                for step in range(turn * 1000, turn * 1000 + 1000):
                    if module is pcc:
                        handles.append(checkpointer.save(step, **PARTS))
                    else:
                        handles.append(checkpointer.save(step, {"x": np.ones(999)}))
                    checkpointer.stats()

        def close(
            checkpointer: Any = checkpointer, handles: Any = handles, turn: int = turn
        ) -> None:
            while len(handles) < turn:
                time.sleep(0.001)
            checkpointer.close()

        run_all([save, close])
        # What was begun has ended, and the newest is what a load finds.
        assert all(handle.done() for handle in handles)
        if handles:
            assert pccheck.checkpoints(path)[0].step == handles[-1].step


# -- the end of the process

ENDING = """
import os, sys, threading, time
import numpy as np, pccheck
path, how = sys.argv[1:]
checkpointer = pccheck.Checkpointer(path, in_flight=3, chunk="1 MiB", pool="4 MiB")
state = {"x": np.ones(1 << 20)}
checkpointer.save(1, state).wait()
print(1, flush=True)
def loop():
    for step in range(2, 10 ** 6):
        handle = checkpointer.save(step, state)
        if step % 3 == 0:
            handle.wait()
            os.write(1, b"%d\\n" % step)
if how == "daemon":
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(1)
elif how == "global":
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(0.5)
    del checkpointer
elif how == "_exit":
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(1)
    os._exit(0)
elif how == "atexit":
    import atexit
    atexit.register(lambda: checkpointer.save(3, state))
    checkpointer.save(2, state)
elif how == "cycle":
    checkpointer.itself = checkpointer
    checkpointer.save(2, state)
elif how == "error":
    checkpointer.save(2, state)
    raise SystemExit(0)
"""


@pytest.mark.parametrize("how", ["daemon", "global", "_exit", "atexit", "cycle", "error"])
def test_saves_in_flight_at_the_end_of_the_process(path: Path, how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", ENDING, path, how],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Fatal" not in ended.stderr and "Segmentation" not in ended.stderr
    told = [int(line) for line in ended.stdout.split()]
    newest = pccheck.checkpoints(path)[0].step
    assert newest >= told[-1]
    if how in ("cycle", "error"):
        assert newest == 2
    assert (pccheck.load(path)["x"] == 1).all()
    # Nobody holds it, and it was closed unless the process was killed.
    pccheck.Checkpointer(path).close()


def test_an_interpreter_inside_of_the_interpreter_is_refused(path: Path) -> None:
    code = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import pccheck
with pccheck.Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, 1).wait()
    inner = interpreters.create()
    try:
        found = interpreters.run_string(inner, "import pccheck")
        print(found)
    except Exception as error:
        print(error)
    checkpointer.save(2, 2).wait()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert pccheck.load(path) == 2
    assert os.path.exists(path)


# -- an interrupted save


def test_an_interrupt_leaves_no_table_half_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of a state is used again while its structure stays the same."""
    from pccheck._core.engine import TensorTable

    real = TensorTable._build

    def interrupted(self: TensorTable, entries: Any) -> None:
        real(self, entries)
        self._rows["byte_count"] = 0
        raise KeyboardInterrupt

    one, two = {"x": torch.ones(100)}, {"x": torch.ones(100), "y": torch.ones(50)}
    with pcc.Checkpointer(path, capacity="1 MiB") as checkpointer:
        checkpointer.save(1, rng=False, **one).wait()
        monkeypatch.setattr(TensorTable, "_build", interrupted)
        for state in (two, {"z": torch.ones(100)}):
            with pytest.raises(KeyboardInterrupt):
                checkpointer.save(2, rng=False, **state)
        monkeypatch.undo()
        checkpointer.save(3, rng=False, **one).wait()
        assert torch.equal(pcc.load(path)["x"], one["x"])


def test_an_interrupted_close_of_a_reader_leaves_no_pin(path: Path) -> None:
    """At every line of it: the reader is closed then, or by its finalizer."""
    from interrupting import Striker, interrupt, kinds_of_locks

    from pccheck._core.reader import Reader

    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, 1).wait()
    place, striker = 1, Striker(interrupt, by_opcode=True)
    while striker.count >= place - 1:
        reader = Reader(path)
        reader.select_newest()
        striker.run(lambda _, reader=reader: reader.close(), None, place)  # type: ignore
        del reader
        gc.collect()
        assert kinds_of_locks(str(path)) == {fcntl.F_UNLCK}, place
        place += 1
    assert place > 10
