"""Urgent saves, and what SIGTERM sets off."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pccheck
import pccheck.numpy

MIB = 1 << 20
#: A shared lock of the bytes that stand for slots, from byte 1024 on, as fcntl takes it.
ALL_SLOTS = fcntl.F_RDLCK, os.SEEK_SET, 1024, 8, 0

LOOP = """
import logging, signal, sys, time
import numpy as np
import pccheck.numpy
logging.basicConfig(level="INFO", stream=sys.stderr, format="%(message)s")
path, after, chained = sys.argv[1], sys.argv[2], sys.argv[3]
if chained == "chained":
    signal.signal(signal.SIGTERM, lambda number, frame: print("previous handler", flush=True))
state = {"x": np.zeros(2 << 20)}
with pccheck.numpy.Checkpointer(
    path, on_sigterm="save", after_sigterm=after, grace=20, policy=1000
) as checkpointer:
    start = checkpointer.resume(state=state)
    for step in range(start, 10 ** 6):
        state["x"][:] = step
        time.sleep(0.005)
        handle = checkpointer.maybe_save(step, state=state)
        if handle is not None:
            handle.wait_staged()
        if step == 5:
            print("going", flush=True)
        if checkpointer.should_stop():
            print("stopped", step, flush=True)
            break
print("left", flush=True)
"""


@pytest.mark.parametrize("chained", ["chained", "alone"])
@pytest.mark.parametrize(
    ("after", "status", "words"),
    [("exit", 143, []), ("signal", -signal.SIGTERM, []), ("return", 0, ["stopped", "left"])],
)
def test_sigterm_makes_one_more_state_durable(
    path: Path,
    run_child: Callable[..., subprocess.Popen[str]],
    after: str,
    status: int,
    words: list[str],
    chained: str,
) -> None:
    child = run_child(LOOP, path, after, chained)
    assert child.stdout is not None
    assert child.stdout.readline() == "going\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    output, errors = child.communicate(timeout=30)
    if chained == "chained":
        # Whoever handles the signal decides: the process was not ended by it.
        status = 143 if after == "signal" else status
        assert output.count("previous handler") == 1
    assert child.returncode == status, errors
    for word in words:
        assert word in output
    assert ("left" in output) == ("left" in words)
    loaded = pccheck.load(path)
    line = next(line for line in errors.splitlines() if "SIGTERM" in line)
    step = int(loaded["state"]["x"][0])
    assert step > 0 and step % 1000 and (loaded["state"]["x"] == step).all()
    assert f"SIGTERM: step {step} is durable" in line
    assert "s after the signal" in line and "before the grace of 20 s ends" in line


def test_a_signal_without_another_save_takes_effect_at_close(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    child = run_child(
        """
import os, signal, sys
import pccheck
with pccheck.Checkpointer(sys.argv[1], on_sigterm="save") as checkpointer:
    checkpointer.save(1, 5)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", checkpointer.should_stop(), flush=True)
print("never", flush=True)
""",
        path,
    )
    output, _ = child.communicate(timeout=30)
    assert output == "still here True\n" and child.returncode == -signal.SIGTERM
    assert pccheck.load(path) == 5


def test_the_handler_is_given_back(path: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    first = pccheck.Checkpointer(path, on_sigterm="save")
    second = pccheck.Checkpointer(tmp_path / "second.pcc", on_sigterm="save")
    assert signal.getsignal(signal.SIGTERM) != before
    first.close()
    assert signal.getsignal(signal.SIGTERM) != before
    assert not second.should_stop()
    second.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_checkpointers_both_save_before_the_end(tmp_path: Path) -> None:
    paths = [tmp_path / "one.pcc", tmp_path / "two.pcc"]
    one, two = (pccheck.Checkpointer(path, on_sigterm="save") for path in paths)
    with pytest.raises(SystemExit) as ended:
        with one, two:
            signal.raise_signal(signal.SIGTERM)
            assert one.should_stop() and two.should_stop()
            one.save(3, "one")
            two.save(3, "two")
            pytest.fail("went on")
    assert ended.value.code == 143
    assert [pccheck.load(path) for path in paths] == ["one", "two"]


def test_only_in_the_main_thread(path: Path) -> None:
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            pccheck.Checkpointer(path, capacity="1 MiB", on_sigterm="save")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=open_it, name="loader-3")
    thread.start()
    thread.join()
    assert isinstance(errors[0], pccheck.InvalidArgument)
    assert "main thread only, and this is loader-3" in str(errors[0])
    # The file is not left locked.
    pccheck.Checkpointer(path).close()


@pytest.mark.parametrize(
    "options",
    [{"on_sigterm": "exit"}, {"on_sigterm": "save", "after_sigterm": "x"},
     {"on_sigterm": "save", "grace": 0}],
)  # fmt: skip
def test_odd_options(path: Path, options: dict[str, object]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(pccheck.InvalidArgument):
        pccheck.Checkpointer(path, **options)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_failed_last_save_is_told(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, timeout: float | None = None) -> None:
        raise pccheck.DeviceError("the disk is gone")

    with pccheck.Checkpointer(path, on_sigterm="save", after_sigterm="return") as checkpointer:
        checkpointer.save(1, 1).wait()
        monkeypatch.setattr(pccheck.SaveHandle, "wait", fail)
        signal.raise_signal(signal.SIGTERM)
        checkpointer.save(2, 2)
        monkeypatch.undo()
    assert "SIGTERM: step 2 could not be saved: the disk is gone" in caplog.text


# -- urgent


@pytest.mark.parametrize("on_busy", ["wait", "skip", "fail"])
def test_an_urgent_save_gets_a_slot_whatever_the_policy(path: Path, on_busy: str) -> None:
    state = {"x": np.ones(24 * MIB, np.uint8)}
    with pccheck.Checkpointer(path, in_flight=1, on_busy=on_busy) as checkpointer:
        checkpointer.save(1, state)
        handle = checkpointer.save(2, state, urgent=True)
        assert handle.wait().durable


def test_an_urgent_save_overtakes(path: Path) -> None:
    """Four are queued behind a small pool; the urgent one comes last and is durable first."""
    state = {"x": np.ones(16 * MIB, np.uint8)}
    overtaken = 0
    options: dict[str, object] = {"in_flight": 5, "chunk": "1 MiB", "pool": "4 MiB"}
    with pccheck.Checkpointer(path, **options) as checkpointer:
        checkpointer.save(0, state).wait()
        older = [checkpointer.save(step, state, overlap=True) for step in range(1, 5)]
        urgent = checkpointer.save(5, state, urgent=True, overlap=True)
        assert urgent.wait().durable
        overtaken = sum(handle.wait().superseded_by == urgent.sequence for handle in older)
    assert overtaken >= 2


def test_saves_that_became_urgent_in_vain_still_begin(path: Path) -> None:
    """SIGTERM makes every save that waits urgent; after the last save, the others no longer are."""
    options: dict[str, object] = {"in_flight": 1, "busy_timeout": 5}
    with pccheck.Checkpointer(
        path, on_sigterm="save", after_sigterm="return", **options
    ) as checkpointer:
        state = {"x": np.arange(10)}
        checkpointer.save(1, state).wait()
        states: list[str] = []

        def save() -> None:
            handle = checkpointer.save(2, state)
            handle.wait()
            states.append(handle.state)

        threads = [threading.Thread(target=save, daemon=True) for _ in range(3)]
        with open(path, "rb") as file:
            # As a reader that pins every free slot: all of them wait.
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", *ALL_SLOTS))
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
        for thread in threads:
            thread.join(timeout=20)
        assert states == ["durable"] * 3
