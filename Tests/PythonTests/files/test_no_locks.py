"""Reading where fcntl(2) has no open-file-description locks: the library and the real tools."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pccheck

from conftest import ROOT, flip_byte_of, pattern

BIN = ROOT / "build" / "bin"
MISSING = ["EINVAL", "ENOLCK", "ENOSYS", "EOPNOTSUPP"]

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int refuse(int command) {
    if (command != F_OFD_SETLK && command != F_OFD_GETLK && command != F_OFD_SETLKW) return 0;
    errno = atoi(getenv("PCCHECK_TEST_LOCK_ERRNO"));
    return 1;
}
#define FORWARD(name)                                                       \
    int name(int file, int command, ...) {                                  \
        va_list list;                                                       \
        va_start(list, command);                                            \
        void *argument = va_arg(list, void *);                              \
        va_end(list);                                                       \
        int (*next)(int, int, ...) = dlsym(RTLD_NEXT, #name);               \
        return refuse(command) ? -1 : next(file, command, argument);        \
    }
FORWARD(fcntl)
FORWARD(fcntl64)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shim")
    source, library = place / "locks.c", place / "locks.so"
    source.write_text(SHIM)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    return library


@pytest.fixture
def run_without_locks(shim: Path, request: pytest.FixtureRequest):
    name = getattr(request, "param", "EINVAL")
    surroundings = dict(os.environ)
    surroundings["LD_PRELOAD"] = str(shim)
    surroundings["PCCHECK_TEST_LOCK_ERRNO"] = str(getattr(errno, name))

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command], env=surroundings, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture
def saved(path: Path) -> Path:
    with pccheck.Checkpointer(path, retain=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"x": pattern(step)}).wait()
    return path


LOAD = """
import sys, pccheck
state = pccheck.load(sys.argv[1])
print(int(state["x"][0]), int(pccheck.load_tensor(sys.argv[1], "x")[0]))
"""

every_errno = pytest.mark.parametrize("run_without_locks", MISSING, indirect=True)


@every_errno
def test_python_loads(saved: Path, run_without_locks) -> None:
    said = run_without_locks(sys.executable, "-c", LOAD, saved)
    assert said.returncode == 0, said.stderr
    first = int(pattern(2)[0])
    assert said.stdout.split() == [str(first)] * 2


@every_errno
def test_the_tools_read(saved: Path, tmp_path: Path, run_without_locks) -> None:
    target = tmp_path / "out.npz"
    said = run_without_locks(BIN / "pcextract", saved, "-o", target)
    assert said.returncode == 0, said.stderr
    with np.load(target) as arrays:
        assert any((arrays[name] == pattern(2)).all() for name in arrays.files)
    said = run_without_locks(BIN / "pcfsck", "--verify", "full", "--json", saved)
    assert said.returncode == 0, said.stdout + said.stderr
    document = json.loads(said.stdout)
    assert document["files"][0]["is_writer_at_work"] is None
    assert document["files"][0]["is_clean"]
    said = run_without_locks(BIN / "pcinspect", saved, "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["file"]["is_writer_at_work"] is None
    said = run_without_locks(BIN / "pcinspect", "watch", "--count", "1", "--json", saved)
    assert said.returncode == 0, said.stderr
    # The mark of a clean close says that nobody has it.
    assert json.loads(said.stdout.splitlines()[0])["writer"] == "closed"
    for action in (["chunks", "--verify"], ["tensors", "--stats"], ["slots"], ["super"]):
        said = run_without_locks(BIN / "pcinspect", *action, saved)
        assert said.returncode == 0, (action, said.stdout, said.stderr)


def test_whether_a_writer_is_at_work_is_unknown(saved: Path, run_without_locks) -> None:
    with pccheck.Checkpointer(saved, retain=2) as checkpointer:
        checkpointer.save(3, {"x": pattern(3)}).wait()
        said = run_without_locks(BIN / "pcinspect", saved)
        assert said.returncode == 0, said.stderr
        line = next(line for line in said.stdout.splitlines() if "writer" in line)
        assert f"unknown: there are no locks here that show it; process {os.getpid()}" in " ".join(
            said.stdout.split()
        ), line
        said = run_without_locks(BIN / "pcinspect", "watch", "--count", "1", "--json", saved)
        assert json.loads(said.stdout.splitlines()[0])["writer"] == "unknown"
        said = run_without_locks(BIN / "pcfsck", saved)
        assert "no locks here show whether a writer is at work" in " ".join(said.stdout.split())


def test_damage_is_still_damage(saved: Path, tmp_path: Path, run_without_locks) -> None:
    flip_byte_of(saved, 2)
    said = run_without_locks(BIN / "pcfsck", "--verify", "full", saved)
    assert said.returncode == 4 and "PCK-C001" in said.stdout
    said = run_without_locks(sys.executable, "-c", LOAD, saved)
    assert said.returncode == 0 and said.stdout.split()[0] == str(int(pattern(1)[0]))


@every_errno
def test_a_writer_is_refused(saved: Path, run_without_locks) -> None:
    code = "import pccheck, sys; pccheck.Checkpointer(sys.argv[1]).save(9, {}).wait()"
    before = saved.read_bytes()
    said = run_without_locks(sys.executable, "-c", code, saved)
    last = said.stderr.strip().splitlines()[-1]
    assert said.returncode != 0 and "has no open-file-description locks" in last, said.stderr
    assert "move the file to a local file system" in last
    said = run_without_locks(BIN / "pcfsck", "-y", saved)
    assert saved.read_bytes() == before
    assert said.returncode in (0, 8), said.stdout
