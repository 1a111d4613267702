"""The staging pool: its size, what happens when there is no memory for it, and pinning it."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pattern

import pccheck
from pccheck._core.arguments import parse_size
import pccheck.torch

MIB = 1 << 20


class Recorder:
    """A pin callable that remembers what it was asked."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []

    def __call__(self, address: int, byte_count: int) -> Any:
        self.events.append(("pin", address, byte_count))
        return lambda: self.events.append(("unpin", address, byte_count))


def mapped(address: int) -> bool:
    """True when an address belongs to this process's memory now."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(text, 16) for text in line.split()[0].split("-"))
        if begin <= address < end:
            return True
    return False


def locked_byte_count() -> int:
    """Memory that mlock holds."""
    match = re.search(r"VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


@pytest.mark.parametrize("pool", ["768 KiB", "1 MiB", "5 MiB", "32 MiB"])
def test_from_a_chunk_per_worker_to_twice_the_state(path: Path, pool: str) -> None:
    state = {"x": pattern(1, 1 << 21)}
    with pccheck.Checkpointer(path, chunk="256 KiB", pool=pool) as checkpointer:
        for step in range(3):
            checkpointer.save(step, state)
        assert checkpointer.save(3, state).wait().durable
        assert checkpointer.stats()["pool_byte_count"] == parse_size(pool)
        assert np.array_equal(checkpointer.load()["x"], state["x"])


def test_a_pool_has_at_least_a_chunk_per_writer_worker(path: Path) -> None:
    options = {"chunk": "1 MiB", "pool": 1, "writer_workers": 5, "capacity": "2 MiB"}
    with pccheck.Checkpointer(path, **options) as checkpointer:
        assert checkpointer.stats()["pool_byte_count"] == 5 * MIB


def test_more_than_there_is_is_refused_before_it_is_touched(path: Path) -> None:
    with pccheck.Checkpointer(path, capacity="1 MiB") as checkpointer:
        checkpointer.save(1, {"x": 1}).wait()
    with pytest.raises(pccheck.OutOfMemory) as caught:
        pccheck.Checkpointer(path, pool="1024 TiB")
    assert isinstance(caught.value, MemoryError)
    asked, available = re.search(r"take (\d+) bytes, but (\d+) are", str(caught.value)).groups()
    assert int(asked) == 1 << 50
    meminfo = Path("/proc/meminfo").read_text()
    total = int(re.search(r"MemTotal:\s+(\d+)", meminfo)[1]) * 1024
    assert 0 < int(available) <= total
    # The lock was given back.
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.steps() == [1]


_GROUP = """
import os, sys
import pccheck
from pccheck._core.arguments import parse_size
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
try:
    pccheck.Checkpointer(sys.argv[2], pool="512 MiB")
except pccheck.OutOfMemory as error:
    print(error)
with pccheck.Checkpointer(sys.argv[2], pool="16 MiB") as checkpointer:
    print(checkpointer.steps())
"""


def test_a_control_group_counts(path: Path) -> None:
    """A limit below the machine's memory gives an error, not a dead process."""
    with pccheck.Checkpointer(path, capacity="1 MiB", pool="16 MiB") as checkpointer:
        checkpointer.save(1, {"x": 1}).wait()
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":")[2] for line in lines if line.split(":")[1] == "memory"), None)
    if own is not None:
        parent, limit = Path("/sys/fs/cgroup/memory" + own), "memory.limit_in_bytes"
    else:
        parent, limit = Path("/sys/fs/cgroup" + lines[-1].split(":")[2]), "memory.max"
    group = parent / "pccheck-test"
    try:
        group.mkdir()
        (group / limit).write_text(str(256 * MIB))
    except OSError as error:
        pytest.skip(f"cannot limit memory here: {error}")
    try:
        result = subprocess.run(
            [sys.executable, "-c", _GROUP, str(group), str(path)], capture_output=True, text=True
        )
    finally:
        group.rmdir()
    assert result.returncode == 0, result.stderr
    message, steps = result.stdout.splitlines()
    assert "take 536870912 bytes" in message and steps == "[1]"
    assert int(re.search(r"but (\d+) are available", message)[1]) < 256 * MIB


# -- pinning


def test_a_callable_is_given_the_pool_and_undone_before_it_goes(path: Path) -> None:
    recorder = Recorder()
    gone: list[bool] = []

    def pin(address: int, byte_count: int) -> Any:
        undo = recorder(address, byte_count)

        def unpin() -> None:
            gone.append(not mapped(address))
            undo()

        return unpin

    with pccheck.Checkpointer(path, pool="16 MiB", pin=pin) as checkpointer:
        assert recorder.events == []
        checkpointer.save(1, {"x": pattern(1)}).wait()
        (event, address, byte_count), = recorder.events
        assert event == "pin" and address % 4096 == 0
        assert byte_count == checkpointer.stats()["pool_byte_count"] == 16 * MIB
        assert mapped(address) and mapped(address + byte_count - 1)
        # It is the memory that states go through.
        staged = ctypes.string_at(address, byte_count)
        assert pattern(1)[1000:1004].tobytes() in staged
    assert [event[0] for event in recorder.events] == ["pin", "unpin"]
    assert gone == [False] and not mapped(address)
    checkpointer.close()
    assert len(recorder.events) == 2


def test_the_pool_can_be_locked(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def lock(address: int, byte_count: int) -> Any:
        pointer, count = ctypes.c_void_p(address), ctypes.c_size_t(byte_count)
        if libc.mlock(pointer, count) != 0:
            pytest.skip(f"mlock is refused here: errno {ctypes.get_errno()}")
        return lambda: libc.munlock(pointer, count)

    before = locked_byte_count()
    with pccheck.torch.Checkpointer(path, pool="16 MiB", capacity="1 MiB", pin=lock):
        assert locked_byte_count() - before == 16 * MIB
    assert locked_byte_count() == before


def test_a_pin_that_fails_leaves_the_file_unlocked(path: Path) -> None:
    def refuse(address: int, byte_count: int) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pccheck.Checkpointer(path, capacity="1 MiB", pin=refuse)
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.steps() == []


def test_an_unpin_that_fails_does_not_keep_the_file_open(path: Path) -> None:
    def pin(address: int, byte_count: int) -> Any:
        return lambda: 1 // 0

    with pccheck.Checkpointer(path, capacity="1 MiB", pin=pin) as checkpointer:
        checkpointer.save(1, {"x": 1}).wait()
    with pccheck.Checkpointer(path) as checkpointer:
        assert checkpointer.steps() == [1]


def test_cuda_is_asked_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"capacity": "1 MiB", "pool": "12 MiB"}
    if not torch.cuda.is_available():
        with pytest.raises(pccheck.CheckpointError, match="torch finds none"):
            pccheck.torch.Checkpointer(path, pin=True, **options)
        with pccheck.torch.Checkpointer(path, pin="auto", **options):
            pass
    calls: list[tuple[Any, ...]] = []
    answers = {"register": 0}

    def register(address: int, byte_count: int, flags: int) -> int:
        calls.append(("register", address, byte_count, flags))
        return answers["register"]

    def unregister(address: int) -> int:
        calls.append(("unregister", address))
        return 0

    # The calls into the CUDA runtime, recorded: what a machine without a GPU can check.
    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=unregister,
        cudaGetErrorString=lambda result: f"error {result}",
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    for pin in (True, "auto"):
        calls.clear()
        with pccheck.torch.Checkpointer(path, pin=pin, **options):
            (name, address, byte_count, flags), = calls
            assert (name, byte_count, flags) == ("register", 12 * MIB, 0)
        assert calls[1:] == [("unregister", address)]
    answers["register"] = 2
    with pytest.raises(pccheck.OutOfMemory, match="error 2"):
        pccheck.torch.Checkpointer(path, pin=True, **options)
    with pccheck.torch.Checkpointer(path, pin="auto", **options) as checkpointer:
        checkpointer.save(1, x=torch.ones(3), rng=False).wait()


@pytest.mark.parametrize("pin", ["yes", 1, object()])
def test_odd_pins(path: Path, pin: Any) -> None:
    for kind in (pccheck.Checkpointer, pccheck.torch.Checkpointer):
        with pytest.raises(pccheck.InvalidArgument, match="pin is"):
            kind(path, capacity="1 MiB", pin=pin)


GROWTH = """
import re, sys, numpy as np, pccheck
def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
state = {"x": np.full(1 << 26, 1.5)}
with pccheck.Checkpointer(sys.argv[1], in_flight=1, pool=sys.argv[2]) as checkpointer:
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    checkpointer.save(1, state).wait()
    print(status("VmHWM") - before)
"""


@pytest.mark.parametrize(("pool", "is_bounded"), [("16 MiB", True), ("512 MiB", False)])
def test_one_large_tensor_takes_no_more_than_the_pool(
    path: Path, run_child: Any, pool: str, is_bounded: bool
) -> None:
    """512 MiB here, as well as 8 GiB; a pool of the state's size is what it must not take."""
    output, errors = run_child(GROWTH, path, pool).communicate(timeout=120)
    assert errors == ""
    assert (int(output) < 64 * MIB) == is_bounded, f"{int(output) / MIB:.0f} MiB"
