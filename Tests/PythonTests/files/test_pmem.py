"""Persistent memory: libpmem2 on files in memory, with the granularity that children are told.

libpmem2 takes tmpfs for persistent memory when the environment says so, and every child here has
its own environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, pattern

import pccheck

Start = Callable[..., subprocess.Popen[str]]

PRELUDE = """
import json, os, sys
path, granularity = sys.argv[1:3]
# libpmem2 reads it with getenv(3) at every mapping.
os.environ.pop("PMEM2_FORCE_GRANULARITY", None)
if granularity != "unforced":
    os.environ["PMEM2_FORCE_GRANULARITY"] = granularity
import numpy as np
import pccheck

def pattern(step, count=1 << 18):
    return np.random.default_rng(1000 + step).integers(0, 1 << 63, count, dtype=np.int64)
"""

SAVE = """
deep = sys.argv[3] == "deep"
with pccheck.Checkpointer(path, backend="pmem", deep_flush=deep) as checkpointer:
    outcome = checkpointer.save(1, {"x": pattern(1)}).wait()
    stats = checkpointer.stats()
print(json.dumps({"durable": outcome.durable, **stats}))
"""

REFUSED = """
pccheck.Checkpointer(path, capacity="4M", backend="direct").close()
try:
    pccheck.Checkpointer(path, backend="pmem")
    print(json.dumps(None))
except pccheck.Unsupported as error:
    print(json.dumps(str(error)))
# Without being asked for, it is not missed.
with pccheck.Checkpointer(path) as checkpointer:
    checkpointer.save(2, {"x": pattern(2)}).wait()
"""

SAVE_FOR_EVER = """
with pccheck.Checkpointer(path, in_flight=3, capacity="4M", backend="pmem") as checkpointer:
    step = 0
    while True:
        step += 1
        ticket = checkpointer.save(step, {"x": pattern(step)})
        if step % 8 == 0:
            ticket.wait()
            print(step, flush=True)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """A file in memory."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no writable /dev/shm")
    folder = tempfile.mkdtemp(prefix="pccheck-", dir="/dev/shm")
    yield Path(folder) / "run.pcc"
    shutil.rmtree(folder)


def output(child: subprocess.Popen[str]) -> object:
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    return json.loads(out)


@pytest.mark.parametrize("deep", ["deep", "plain"])
@pytest.mark.parametrize(
    ("granularity", "name"),
    [("CACHE_LINE", "cache line granularity"), ("BYTE", "byte granularity")],
)
def test_save_is_durable_and_says_how(
    path: Path, run_child: Start, granularity: str, name: str, deep: str
) -> None:
    told = output(run_child(PRELUDE + SAVE, path, granularity, deep))
    assert isinstance(told, dict)
    assert told["durable"]
    assert told["backend"] == "persistent_memory"
    assert told["backend_fallback_reason"] is None
    assert name in told["backend_detail"]
    assert ("deep flushes" in told["backend_detail"]) == (deep == "deep")
    assert (pccheck.load(path)["x"] == pattern(1)).all()


def test_the_tools_say_how_it_was_written(path: Path, run_child: Start) -> None:
    inspect = ROOT / "build" / "bin" / "pcinspect"
    if not inspect.exists():
        pytest.skip(f"{inspect} is not built; run make tools")
    output(run_child(PRELUDE + SAVE, path, "CACHE_LINE", "plain"))
    text = subprocess.run([inspect, "super", path], capture_output=True, text=True, check=True)
    assert "persistent_memory storage" in text.stdout
    assert "unsafe shutdowns" in text.stdout
    found = subprocess.run([inspect, "super", "--json", path], capture_output=True, check=True)
    newest = max(
        (copy["superblock"] for copy in json.loads(found.stdout)["superblocks"]),
        key=lambda superblock: superblock["generation"],
    )
    assert newest["storage_kind"] == "persistent_memory"
    assert newest["unsafe_shutdown_count"] == 0, "tmpfs does not count"


RECORDER = ROOT / "build" / "tests" / "pmem-recorder" / "libpmem2.so.1"


def test_every_store_has_its_fence(
    path: Path, run_child: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing here loses a store, so libpmem2's calls are counted, for the chunks' path too."""
    if not RECORDER.exists():
        pytest.skip(f"{RECORDER} is not built; run make test-c")
    log = tmp_path / "log"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(RECORDER.parent))
    monkeypatch.setenv("PMEM_RECORDER_LOG", str(log))
    told = output(run_child(PRELUDE + SAVE, path, "CACHE_LINE", "plain"))
    assert isinstance(told, dict)
    assert told["backend"] == "persistent_memory"
    counts = dict(field.split("=") for field in log.read_text().split())
    assert int(counts["stores"]) > 100, "the chunks went another way"
    assert int(counts["drains"]) > 5
    assert int(counts["undrained"]) == 0


@pytest.mark.parametrize("granularity", ["unforced", "PAGE"])
def test_page_granularity_is_refused(path: Path, run_child: Start, granularity: str) -> None:
    message = output(run_child(PRELUDE + REFUSED, path, granularity))
    assert isinstance(message, str), "it was not refused"
    for part in (str(path), "whole pages", "expected cache lines or bytes", "-o dax", "direct"):
        assert part in message
    assert (pccheck.load(path)["x"] == pattern(2)).all()


def test_kill_loses_nothing_that_was_durable(path: Path, run_child: Start) -> None:
    for _ in range(3):
        path.unlink(missing_ok=True)
        child = run_child(PRELUDE + SAVE_FOR_EVER, path, "CACHE_LINE")
        assert child.stdout is not None
        durable = [int(child.stdout.readline()) for _ in range(3)][-1]
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=60)
        durable = max([durable, *map(int, rest.split())])
        newest = pccheck.checkpoints(path)[0].step
        assert newest >= durable
        assert (pccheck.load(path)["x"] == pattern(newest)).all()
        # The next writer goes on from there, whichever way it comes.
        with pccheck.Checkpointer(path) as checkpointer:
            checkpointer.save(newest + 1, {"x": pattern(newest + 1)}).wait()
        assert (pccheck.load(path)["x"] == pattern(newest + 1)).all()
