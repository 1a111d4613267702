"""What changes while it is read in place fails its own checkpoint, by name; nothing else does."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pccheck
import pccheck.numpy
import pccheck.torch as pcc
import pytest
import torch
from torch import nn

#: Of one change; each comes before staged as often as not, however busy the machine is.
ATTEMPTS = 100
NAMES = [f"model.{index}.weight" for index in range(12)]
# A pool that is much smaller than the state: staging takes as long as the disk does.
SLOW: dict[str, Any] = {"pool": "4 MiB", "chunk": "1 MiB", "retain": 2}


def large(value: float = 1.0) -> nn.Module:
    model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(12)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def add_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


def swap(model: nn.Module) -> None:
    """As a schedule-free optimizer, or an average of weights, does for an evaluation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.lerp_(OTHER["0.weight"], 0.5)


# Made before: what takes its time may come when all of it is staged.
OTHER = large(7).state_dict()
CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "load_state_dict": lambda model: model.load_state_dict(OTHER),
    "nn.init": lambda model: [nn.init.zeros_(p) for p in model.parameters()],
    "in place": add_in_place,
    "swap": swap,
    "detached": lambda model: [p.detach().zero_() for p in model.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_staged_fails_that_checkpoint(path: Path, change: str) -> None:
    model = large()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        checkpointer.save(1, model=model, rng=False).wait()
        durable = 1
        # On a busy machine all of it may be staged before the change begins, or ends: then it is
        # as right that the checkpoint stays, or fails for what was changed by then. Once more.
        for step in range(2, ATTEMPTS):
            handle = checkpointer.save(step, model=model, rng=False)
            CHANGES[change](model)
            try:
                handle.wait()
            except pccheck.StateChanged as error:
                assert handle.state == "failed" and error.step == step
                assert error.names == NAMES[: len(error.names)] != []
                assert re.match(rf"step {step}: 'model\.0\.weight'.*discarded", str(error))
                if error.names == NAMES:
                    break
            else:
                durable = step
            assert pcc.load(path, durable)["model"]["0.weight"].unique().tolist() == [1]
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(1)
        else:
            pytest.fail(f"{ATTEMPTS} changes all ended after staged")
        assert checkpointer.steps()[0] == durable
        # The run goes on, with what it has now.
        checkpointer.save(step + 1, model=model, rng=False).wait()
    loaded = pcc.load(path, step + 1)["model"]
    assert torch.equal(loaded["0.weight"], model[0].weight)
    assert pcc.load(path, durable)["model"]["0.weight"].unique().tolist() == [1]


def test_a_change_that_takes_longer_than_staging_is_noticed(path: Path) -> None:
    """torch counts a change when it is done; the thread that decides must not come before it."""
    model = nn.Linear(2048, 8192, bias=False)
    failed = 0
    with pcc.Checkpointer(path, pool="128 MiB", chunk="1 MiB") as checkpointer:
        for step in range(1, 21):
            with torch.no_grad():
                model.weight.fill_(0.5)
                handle = checkpointer.save(step, model=model, rng=False)
                model.weight.erfinv_()
            try:
                handle.wait()
            except pccheck.StateChanged:
                failed += 1
            else:
                assert pcc.load(path, step)["model"]["weight"].unique().tolist() == [0.5]
    assert failed


def test_a_decision_does_not_need_the_thread_that_saved(path: Path) -> None:
    """It sleeps, waits for another thread, or has ended: it is in no operation of torch."""
    model = nn.Linear(8, 8)
    pauses: list[Callable[[], object]] = [
        lambda: time.sleep(60), lambda: ended.wait(60), lambda: None,
    ]  # fmt: skip
    ended = threading.Event()
    with pcc.Checkpointer(path, in_flight=2) as checkpointer:
        for step, pause in enumerate(pauses, 1):
            saving = threading.Thread(
                target=lambda step=step, pause=pause: (
                    checkpointer.save(step, model=model, rng=False), pause()
                ),
                daemon=True,
            )  # fmt: skip
            saving.start()
            deadline = time.monotonic() + 30
            while checkpointer.stats()["durable_count"] < step if checkpointer.is_open else True:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        ended.set()


CLOSED_DURING_A_SAVE = """
import sys, threading, time
import torch, pccheck, pccheck.torch

module = torch.nn.Module()
module.x = torch.nn.Parameter(torch.ones(25_000_000))
checkpointer = pccheck.torch.Checkpointer(
    sys.argv[1], capacity="110 MiB", chunk="128 KiB", pool="512 KiB", in_flight=2
)
checkpointer.save(1, module=module, rng=False).wait()
begun = threading.Event()

def save():
    try:
        for step in range(2, 100):
            checkpointer.save(step, module=module, rng=False)
            begun.set()
    except pccheck.CheckpointError as error:
        print(type(error).__name__)

saver = threading.Thread(target=save)
saver.start()
begun.wait()
time.sleep(0.05)
checkpointer.close()
saver.join()
"""


def test_close_while_another_thread_saves(path: Path) -> None:
    """The saver waits for a lock that close holds, and close for the word of the saver."""
    command = [sys.executable, "-c", CLOSED_DURING_A_SAVE, str(path)]
    for _ in range(3):
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert run.returncode == 0 and run.stdout == "Closed\n", run.stderr
        path.unlink()


GROWN_DURING_SAVES = """
import itertools, sys, threading
import torch, pccheck, pccheck.torch

module = torch.nn.Module()
module.x = torch.nn.Parameter(torch.ones(4_000_000))
checkpointer = pccheck.torch.Checkpointer(sys.argv[1], chunk="128 KiB", pool="512 KiB")
checkpointer.save(0, module=module, rng=False).wait()
steps, ended = itertools.count(1), threading.Event()

def save(**state):
    try:
        checkpointer.save(next(steps), rng=False, **state)
    except pccheck.StepBackwards:
        pass

def save_again():
    while not ended.is_set():
        save(module=module)

saver = threading.Thread(target=save_again)
saver.start()
for count in range(5, 12):
    save(module=module, grows=torch.zeros(count * 1_000_000))
ended.set()
saver.join()
checkpointer.close()
"""


def test_the_file_grows_while_another_thread_saves(path: Path) -> None:
    """The one that makes it grow waits for the word of the other, which waits for its lock."""
    command = [sys.executable, "-c", GROWN_DURING_SAVES, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr


def test_another_thread_that_saves_does_not_take_a_step_for_a_change(path: Path) -> None:
    """It lets go of what is staged while this thread is in one long operation, and the step of the
    optimizer behind that asks nobody then."""
    module = nn.Linear(2000, 2000)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    factor = torch.randn(2600, 2600)
    with pcc.Checkpointer(path, capacity="32 MiB", in_flight=4) as checkpointer:
        checkpointer.save(0, module=module, rng=False).wait()
        for step in range(1, 6):
            handles: list[pccheck.SaveHandle] = []

            def save_too(step: int = step, handles: list[Any] = handles) -> None:
                while not handles or handles[0]._library.pcc_ticket_state(handles[0]._ticket) == 0:
                    time.sleep(0.001)
                checkpointer.save(step, x=torch.zeros(10), rng=False)

            other = threading.Thread(target=save_too)
            other.start()
            handles.append(checkpointer.save(step, module=module, rng=False))
            factor @ factor
            optimizer.step()
            assert handles[0].wait().kind in ("durable", "superseded")
            other.join()


def test_nobody_waits_and_it_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = large()
    with caplog.at_level(logging.ERROR, "pccheck"):
        for _ in range(ATTEMPTS):
            with pcc.Checkpointer(path, **SLOW) as checkpointer:
                checkpointer.save(1, model=model)
                add_in_place(model)
            if caplog.records:
                break
            # All of it was staged first: it stays, with what was saved.
            assert pcc.load(path)["model"]["11.weight"].unique().numel() == 1
            path.unlink()
    assert "the checkpoint of step 1 failed: step 1: 'model.0.weight'" in caplog.text
    with pytest.raises(pccheck.NoCheckpoint):
        pcc.load(path)


@pytest.mark.parametrize("wait", ["wait_staged", "poll", "everywhere"])
def test_a_change_after_staged_is_nobodys_business(path: Path, wait: str) -> None:
    model = large()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for step in range(4):
            handle = checkpointer.save(step, model=model)
            if wait == "wait_staged":
                handle.wait_staged()
            elif wait == "everywhere":
                checkpointer.wait_staged()
            else:
                while handle.state == "staging":
                    time.sleep(0.001)
            add_in_place(model)
            handle.wait()
    assert pcc.load(path)["model"]["0.weight"].unique().tolist() == [4]


def test_a_save_without_overlap_needs_no_care(path: Path) -> None:
    model = large()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        for step in range(4):
            handle = checkpointer.save(step, model=model, overlap=False)
            add_in_place(model)
            handle.wait()
    assert pcc.load(path)["model"]["0.weight"].unique().tolist() == [4]


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor", "RMSprop"])
def test_a_training_loop_is_never_disturbed(path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512), nn.Linear(512, 8))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-3)
    handles = []
    with pcc.Checkpointer(path, pool="1 MiB", chunk="64 KiB", in_flight=3) as checkpointer:
        for step in range(60):
            optimizer.zero_grad()
            model(torch.randn(16, 256)).square().mean().backward()
            optimizer.step()
            handles.append(checkpointer.save(step, model=model, optimizer=optimizer))
        for handle in handles:
            assert handle.wait().kind in ("durable", "superseded")


def test_it_is_durable_though_nobody_asks(path: Path) -> None:
    """The main thread sleeps, or trains for long: the checkpoint is committed meanwhile."""
    model = large()
    with pcc.Checkpointer(path, **SLOW) as checkpointer:
        checkpointer.save(1, model=model)
        deadline = time.monotonic() + 60
        while checkpointer.stats()["durable_count"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)


# -- what nothing guards


@pytest.mark.parametrize("kind", [pcc, pccheck.numpy])
def test_arrays_are_staged_before_save_returns(path: Path, kind: Any) -> None:
    buffer = np.zeros(1 << 22)
    with kind.Checkpointer(path, capacity="48 MiB", pool="16 MiB") as checkpointer:
        for step in range(1, 5):
            buffer[:] = step
            handle = checkpointer.save(step, buffer=buffer)
            buffer += 1000
            handle.wait()
            assert set(kind.load(path, step)["buffer"][::1000].tolist()) == {step}


def test_arrays_of_a_plain_state_are_staged_too(path: Path) -> None:
    buffer = np.zeros(1 << 22)
    with pccheck.Checkpointer(path, capacity="48 MiB", pool="16 MiB") as checkpointer:
        for step in range(1, 5):
            buffer[:] = step
            handle = checkpointer.save(step, {"nest": [buffer, {"small": buffer[:10]}]})
            buffer += 1000
            handle.wait()
            nest = pccheck.load(path, step)["nest"]
            assert set(nest[0][::1000].tolist()) == set(nest[1]["small"].tolist()) == {step}


def test_the_callers_word_is_taken(path: Path) -> None:
    buffer = np.zeros(1 << 22)
    options = {"capacity": "48 MiB", "pool": "4 MiB", "chunk": "1 MiB"}
    with pccheck.Checkpointer(path, **options) as checkpointer:
        handle = checkpointer.save(1, {"x": buffer}, overlap=True)
        assert handle.state == "staging"
        handle.wait()


# -- interruptions


def test_an_interrupt_leaves_nothing_undecided(path: Path) -> None:
    """Ctrl-C while somebody waits for *staged*: the checkpoint is decided on all the same."""
    model = large()
    checkpointer = pcc.Checkpointer(path, **SLOW)
    handle = checkpointer.save(1, model=model)
    timer = threading.Timer(0.01, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        while True:
            handle.wait_staged()
            time.sleep(0.001)
    except KeyboardInterrupt:
        pass
    timer.join()
    assert handle.wait(timeout=60).durable
    checkpointer.close()


def test_an_abandoned_writer_decides_nothing(path: Path) -> None:
    model = large()
    checkpointer = pcc.Checkpointer(path, **SLOW)
    handle = checkpointer.save(1, model=model)
    assert checkpointer._engine is not None
    checkpointer._engine.abandon()
    with pytest.raises(pccheck.CheckpointError):
        handle.wait(timeout=60)
