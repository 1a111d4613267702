"""Ctrl-C at every line of save, load, resume and close: an exception, and then everything works.

A child raises KeyboardInterrupt at the first line of the package that an action runs, then at the
second, and so on, until the action ends without one. A crash, a hang, a lock that stays taken or
a wrong value ends the child.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = r"""
import gc, os, sys, torch, pccheck, pccheck.torch as pcc
path, name = sys.argv[1], sys.argv[2]
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.Adam(model.parameters())
parts = {"model": model, "optimizer": optimizer}
checkpointer = pcc.Checkpointer(path, in_flight=3)
checkpointer.save(1, **parts).wait()
step = 1

def save():
    global step
    step += 1
    checkpointer.save(step, **parts)

def load():
    assert pcc.load(path)["model"]["weight"].shape == (8, 8)

def resume():
    checkpointer.resume(**parts)

def close():
    global checkpointer
    checkpointer.save(step, **parts)
    checkpointer.close()

action = {"save": save, "load": load, "resume": resume, "close": close}[name]
place, count = 0, 0

def trace(frame, event, argument):
    global count
    if "pccheck" not in frame.f_code.co_filename:
        return None
    if event == "line":
        count += 1
        if count == place:
            sys.settrace(None)
            raise KeyboardInterrupt
    return trace

while count >= place:
    place, count = place + 1, 0
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    if name == "close":
        checkpointer.close()
        checkpointer = None
        try:
            checkpointer = pcc.Checkpointer(path)
        except pccheck.Locked:
            # Interrupted, it may have left the file to the finalizer.
            gc.collect()
            checkpointer = pcc.Checkpointer(path)
    elif place % 10 == 0:
        gc.collect()
        junk = [bytearray(200) for _ in range(2000)]
        for _ in range(3):
            step += 1
            checkpointer.save(step, **parts).wait(timeout=60)
    assert gc.isenabled(), place
checkpointer.close()
assert torch.equal(pcc.load(path)["model"]["weight"], model.weight)
print(place)
"""


@pytest.mark.parametrize(
    ("action", "least"), [("save", 300), ("load", 200), ("resume", 300), ("close", 40)]
)
def test_an_interrupt_at_every_line(path: Path, action: str, least: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CHILD, path, action],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= least, "fewer lines than there are"
