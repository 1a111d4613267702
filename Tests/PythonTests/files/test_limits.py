"""Limits on the process: file size, threads, address space. None ends it, and each is named."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pccheck
import pytest
from conftest import ROOT

BIN = ROOT / "build" / "bin"
MIB = 1 << 20
LIMIT = 8 * MIB

PRELUDE = """
import os, resource, signal, sys
import numpy as np, pccheck
path = sys.argv[1]
# As in a program that is not Python's, which ignores it.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
def limit(kind, value):
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
def refused(call):
    try:
        call()
    except pccheck.CheckpointError as error:
        print(type(error).__name__, error.errno, error)
    else:
        print("went well")
"""


def said(code: str, path: Path) -> list[str]:
    """What a child prints, which must end by itself."""
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + code, path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, f"{ended.returncode}: {ended.stderr}"
    return ended.stdout.splitlines()


def test_a_file_beyond_the_limit_is_not_begun(path: Path) -> None:
    lines = said(
        """
limit(resource.RLIMIT_FSIZE, 8 << 20)
checkpointer = pccheck.Checkpointer(path)
refused(lambda: checkpointer.save(1, np.zeros(16 << 20, np.uint8)))
refused(lambda: pccheck.Checkpointer(path, capacity="5 MiB"))
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
refused(lambda: checkpointer.save(1, np.zeros(16 << 20, np.uint8)).wait())
checkpointer.close()
""",
        path,
    )
    for line in lines[:2]:
        assert line.startswith("ResourceLimit 27 ") and str(path) in line
        assert f"may write files of at most {LIMIT} bytes; raise that limit (ulimit -f)" in line
    assert lines[2] == "went well"
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_is_there_is_not_opened_beyond_the_limit(path: Path) -> None:
    with pccheck.Checkpointer(path, capacity="16 MiB") as checkpointer:
        checkpointer.save(1, np.ones(9)).wait()
    lines = said(
        """
limit(resource.RLIMIT_FSIZE, 8 << 20)
refused(lambda: pccheck.Checkpointer(path))
print(pccheck.load(path).sum())
""",
        path,
    )
    assert lines[0].startswith("ResourceLimit 27 ") and "at most 8388608 bytes" in lines[0]
    assert lines[1] == "9.0"


@pytest.mark.parametrize("backend", ["auto", "buffered", "io_uring"])
def test_a_limit_that_comes_later_costs_one_save(path: Path, backend: str) -> None:
    lines = said(
        f"""
state = np.ones(4 << 20, np.uint8)
with pccheck.Checkpointer(path, backend={backend!r}, in_flight=3) as checkpointer:
    checkpointer.save(1, state).wait()
    limit(resource.RLIMIT_FSIZE, 1 << 20)
    refused(lambda: checkpointer.save(2, state).wait())
    refused(lambda: checkpointer.save(3, state).wait())
    limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
    checkpointer.save(4, state).wait()
    print(checkpointer.steps())
""",
        path,
    )
    assert len(lines) == 3
    for line in lines[:2]:
        assert line.startswith("ResourceLimit 27 ") and "at most 1048576 bytes" in line
    assert lines[2].startswith("[4")
    assert [info.step for info in pccheck.checkpoints(path)][0] == 4


def limited(*command: object, byte_count: int = LIMIT) -> subprocess.CompletedProcess[str]:
    """A tool that may write files of that size, to which SIGXFSZ means what it means to all."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, byte_count))

    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, preexec_fn=prepare,
        timeout=60,
    )  # fmt: skip


def test_tools_name_the_limit(path: Path, tmp_path: Path) -> None:
    with pccheck.Checkpointer(path, capacity="16 MiB") as checkpointer:
        checkpointer.save(1, {"x": np.ones(12 * MIB, np.uint8)}).wait()
    output = tmp_path / "out"
    output.mkdir()
    html = output / "page.html"
    for ended in (
        limited(BIN / "pccheck", "create", output / "new.pcc", "--capacity", "16MiB"),
        limited(BIN / "pcextract", path, "-o", output / "x.safetensors"),
        limited(BIN / "pcextract", path, "-o", output / "x.npz"),
        limited(BIN / "pcinspect", path, "--html", html, byte_count=100),
    ):
        assert ended.returncode == 8, ended
        assert "File too large" in ended.stderr and "(ulimit -f)" in ended.stderr, ended
    assert os.listdir(output) == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may write."""
    folder = Path(tempfile.mkdtemp(prefix="pccheck-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_limit_on_threads_is_named(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become a user of whom nothing else runs")
    lines = said(
        """
pccheck.Checkpointer(path, capacity="1 MiB").close()
os.chmod(path, 0o666)
os.setuid(54321)
have = len(os.listdir("/proc/self/task"))
limit(resource.RLIMIT_NPROC, have + 2)
for _ in range(3):
    refused(lambda: pccheck.Checkpointer(path))
limit(resource.RLIMIT_NPROC, have + 10)
print(have + 2)
with pccheck.Checkpointer(path) as checkpointer:
    checkpointer.save(1, 1).wait()
""",
        open_folder / "run.pcc",
    )
    allowed = lines.pop()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("ResourceLimit 11 ") and "pthread_create" in line
        assert f"the limits are {allowed} threads of this user (ulimit -u)" in line
        assert "or ask for fewer workers" in line
    assert pccheck.load(open_folder / "run.pcc") == 1


def test_a_limit_on_the_address_space_is_what_is_available(path: Path) -> None:
    lines = said(
        """
pccheck.Checkpointer(path, capacity="256 MiB").close()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
limit(resource.RLIMIT_AS, used + (100 << 20))
refused(lambda: pccheck.Checkpointer(path))
""",
        path,
    )
    assert lines[0].startswith("OutOfMemory ")
    assert 0 < int(lines[0].split(" bytes, but ")[1].split()[0]) <= 100 * MIB


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_outputs_have_the_mode_that_the_user_asks_for(tmp_path: Path, mask: int) -> None:
    code = """
import os, sys
os.umask(int(sys.argv[2]))
import numpy as np, pccheck
with pccheck.Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, {"x": np.ones(9)}).wait()
"""
    run = tmp_path / "run.pcc"
    subprocess.run([sys.executable, "-c", code, run, str(mask)], check=True, timeout=60)
    commands: list[list[object]] = [
        [BIN / "pccheck", "create", tmp_path / "new.pcc", "--capacity", "1MiB"],
        [BIN / "pcextract", run, "-o", tmp_path / "x.safetensors"],
        [BIN / "pcextract", run, "-o", tmp_path / "x.npz"],
        [BIN / "pcextract", run, "-o", tmp_path / "x.pt"],
        [BIN / "pcinspect", run, "--html", tmp_path / "x.html"],
        [BIN / "pcinspect", "metadump", run, "-o", tmp_path / "x.dump"],
        [BIN / "pccheck", "rescue", run, "--step", "1", "--output", tmp_path / "y.pcc"],
        [sys.executable, "-m", "pccheck", "convert", run, "-o", tmp_path / "z.safetensors"],
        [sys.executable, "-m", "pccheck", "convert", run, "-o", tmp_path / "z.pt"],
    ]
    for command in commands:
        ended = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=60,
            preexec_fn=lambda: os.umask(mask) and None,
        )  # fmt: skip
        assert ended.returncode == 0, (command, ended.stderr)
    modes = {entry.name: entry.stat().st_mode & 0o7777 for entry in tmp_path.iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask)
    assert len(modes) == 1 + len(commands)
