"""Readers that keep slots from a writer: who they are is said, and an urgent save goes first."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, pattern

import pccheck
from pccheck._core.reader import Reader

BIN = ROOT / "build" / "bin"


def state(step: int) -> dict[str, object]:
    return {"x": pattern(step, 1 << 20)}


@pytest.fixture
def stalled(path: Path) -> Iterator[tuple[pccheck.Checkpointer, subprocess.Popen[bytes]]]:
    """A file whose only free slot is pinned by a pcextract that nobody reads from."""
    with pccheck.Checkpointer(path, in_flight=1, retain=1, chunk="1 MiB") as checkpointer:
        checkpointer.save(1, state(1)).wait()
        reader = subprocess.Popen(
            [BIN / "pcextract", path, "--format", "safetensors", "-o", "-"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert reader.stdout is not None and reader.stdout.read(1)
        checkpointer.save(2, state(2)).wait()
        try:
            yield checkpointer, reader
        finally:
            reader.kill()
            reader.communicate()


def test_a_blocked_save_names_slot_and_process(
    stalled: tuple[pccheck.Checkpointer, subprocess.Popen[bytes]],
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpointer, reader = stalled
    threading.Timer(4, reader.kill).start()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "pccheck"):
        handle = checkpointer.save(3, state(3))
    assert time.monotonic() - began > 3
    warnings = [entry for entry in caplog.records if "waits for readers" in entry.getMessage()]
    assert len(warnings) == 1, caplog.text
    said = warnings[0].getMessage()
    assert f"is pinned by process {reader.pid}" in said and "pcextract" in said
    assert str(path) in said and "the save of step 3" in said
    assert handle.wait().durable
    assert checkpointer.stats()["pinned_slots"] == []


def test_the_timeout_names_them_too(path: Path) -> None:
    with pccheck.Checkpointer(
        path, in_flight=1, retain=1, chunk="1 MiB", busy_timeout=0.5
    ) as checkpointer:
        checkpointer.save(1, state(1)).wait()
        with Reader(path) as reader:
            reader.select(reader.list()[0].sequence)
            checkpointer.save(2, state(2)).wait()
            with pytest.raises(pccheck.Timeout, match="this process") as caught:
                checkpointer.save(3, state(3))
            assert f"slot 0 is pinned by this process ({os.getpid()})" in str(caught.value)
            assert caught.value.slot == 0
            (pin,) = checkpointer.stats()["pinned_slots"]
            assert pin["slot"] == 0 and pin["pid"] == os.getpid() and "python" in pin["command"]
        assert checkpointer.save(3, state(3)).wait().durable


def test_skipped_saves_name_them_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pccheck.Checkpointer(
        path, in_flight=1, retain=1, chunk="1 MiB", on_busy="skip"
    ) as checkpointer:
        checkpointer.save(1, state(1)).wait()
        with Reader(path) as reader, caplog.at_level(logging.WARNING, "pccheck"):
            reader.select(reader.list()[0].sequence)
            checkpointer.save(2, state(2)).wait()
            for step in range(3, 9):
                assert checkpointer.save(step, state(3)).wait().kind == "skipped"
                time.sleep(0.1)
        said = [entry.getMessage() for entry in caplog.records]
        assert len(said) == 1 and "was skipped because of readers: slot 0 is pinned" in said[0]
        assert checkpointer.save(9, state(9)).wait().durable


def test_pcinspect_shows_pins(
    stalled: tuple[pccheck.Checkpointer, subprocess.Popen[bytes]], path: Path
) -> None:
    _, reader = stalled
    for action in ([], ["slots"]):
        said = subprocess.run(
            [BIN / "pcinspect", *action, "--json", path],
            capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        slots = json.loads(said.stdout)["slots"]
        (pin,) = slots[0]["pins"]
        assert pin["pid"] == reader.pid and "pcextract" in pin["command"]
        assert slots[1]["pins"] == []
        said = subprocess.run(
            [BIN / "pcinspect", *action, path], capture_output=True, check=True, timeout=60
        )
        assert f"slot 0 is pinned by process {reader.pid}" in said.stdout.decode()
    said = subprocess.run(
        [BIN / "pcinspect", "watch", "--json", "--count", "1", path],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    (pin,) = json.loads(said.stdout.splitlines()[0])["pins"]
    assert pin["slot"] == 0 and pin["process"]["pid"] == reader.pid


def test_an_urgent_save_does_not_wait_for_readers(path: Path) -> None:
    with pccheck.Checkpointer(path, in_flight=1, retain=1, chunk="1 MiB") as checkpointer:
        checkpointer.save(1, state(1)).wait()
        with Reader(path) as reader:
            reader.select(reader.list()[0].sequence)
            checkpointer.save(2, state(2)).wait()
            began = time.monotonic()
            assert checkpointer.save(3, state(3), urgent=True).wait().durable
            assert 0.5 < time.monotonic() - began < 10
            assert checkpointer.stats()["broken_pin_count"] == 1
            with pytest.raises(pccheck.Busy, match="a writer has taken it"):
                reader.verify()
    assert (pccheck.load(path)["x"] == state(3)["x"]).all()


def test_an_urgent_save_of_another_thread_goes_first(path: Path) -> None:
    sequences = {}
    with pccheck.Checkpointer(path, in_flight=1, retain=1, chunk="1 MiB") as checkpointer:
        checkpointer.save(1, state(1)).wait()
        with Reader(path) as reader:
            reader.select(reader.list()[0].sequence)
            checkpointer.save(2, state(2)).wait()

            def save(urgent: bool) -> None:
                handle = checkpointer.save(3, state(3), urgent=urgent)
                sequences[urgent] = handle.sequence
                handle.wait()

            threads = [threading.Thread(target=save, args=[urgent]) for urgent in (False, True)]
            for thread in threads:
                thread.start()
                time.sleep(0.3)
            for thread in threads:
                thread.join(30)
    assert sequences[True] < sequences[False]


PREEMPTED = """
import os, signal, sys, threading, numpy as np, pccheck
from pccheck._core.reader import Reader
path = sys.argv[1]
ckpt = pccheck.Checkpointer(path, in_flight=1, retain=1, on_sigterm="save")
state = {"x": np.zeros(1 << 20)}
ckpt.save(1, state).wait()
reader = Reader(path)
reader.select(reader.list()[0].sequence)
ckpt.save(2, state).wait()
threading.Timer(1, os.kill, [os.getpid(), signal.SIGTERM]).start()
ckpt.save(3, state)
"""


def test_a_save_that_waits_for_readers_ends_with_sigterm(path: Path) -> None:
    """The signal comes while a save waits for a slot: that save becomes the urgent one."""
    ended = subprocess.run(
        [sys.executable, "-c", PREEMPTED, path], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 143, ended.stderr
    assert "SIGTERM: step 3 is durable" in ended.stderr
    assert pccheck.checkpoints(path)[0].step == 3
