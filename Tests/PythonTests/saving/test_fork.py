"""Forked children: they hold nothing of their parent's files, use nothing, and always end."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pccheck

import pccheck.torch as pcc
import pytest
import torch

from pccheck._core.reader import Reader

STATE = {"x": np.arange(1 << 16, dtype=np.float64)}
_FLOCK = "hhqqi4x"


def locks(path: Path, count: int) -> list[int]:
    """The kinds of lock that others have on the writer's byte and on each slot's."""
    found = []
    descriptor = os.open(path, os.O_RDWR)
    try:
        for start in [0, *range(1024, 1024 + count)]:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
            found.append(struct.unpack(_FLOCK, answer)[0])
    finally:
        os.close(descriptor)
    return found


class Child:
    """A forked child that runs a function; its result is what that returns, or its error."""

    def __init__(self, body: Callable[[], str]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        try:
            signal.alarm(20)
            try:
                said = body()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
        finally:
            os._exit(0)

    def said(self) -> str:
        """What the child came to; an empty text when it hung or crashed."""
        with os.fdopen(self._reader, "rb") as pipe:
            text = pipe.read().decode()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with {status}"
        return text


@pytest.fixture(params=["auto", "buffered", "io_uring"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


# -- locks

TRAINER = """
import os, signal, sys, time
import numpy as np, pccheck
from pccheck._core.reader import Reader
path, backend = sys.argv[1:]
checkpointer = pccheck.Checkpointer(path, backend=backend)
checkpointer.save(1, {"x": np.zeros(1 << 16)}).wait()
reader = Reader(path)
reader.select_newest()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
checkpointer.save(2, {"x": np.ones(1 << 16)}).wait()
print(child, flush=True)
time.sleep(60)
"""


def test_a_killed_trainer_leaves_no_lock_with_its_children(
    path: Path, backend: str, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    trainer = run_child(TRAINER, path, backend)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    try:
        assert fcntl.F_WRLCK in locks(path, 3)
        assert fcntl.F_RDLCK in locks(path, 3)
        trainer.kill()
        trainer.wait()
        with pccheck.Checkpointer(path) as checkpointer:
            assert locks(path, 3)[1:] == [fcntl.F_UNLCK] * 3
            assert checkpointer.steps()[0] == 2
            checkpointer.save(3, STATE).wait()
        os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_child_has_no_descriptor_of_the_file(path: Path, backend: str) -> None:
    def links() -> str:
        found = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                 if os.path.lexists(f"/proc/self/fd/{name}")]  # fmt: skip
        maps = Path("/proc/self/maps").read_text()
        return ",".join(
            link for link in found if "run.pcc" in link or "io_uring" in link
        ) + ("mapped" if "run.pcc" in maps or "io_uring" in maps else "")

    with pccheck.Checkpointer(path, backend=backend) as checkpointer:
        checkpointer.save(1, STATE).wait()
        with Reader(path) as reader:
            reader.select_newest()
            numbers = {int(name) for name in os.listdir("/proc/self/fd")}
            assert Child(links).said() == ""
            # The numbers stay taken, so that nobody else's file gets one.
            kept = Child(lambda: ",".join(os.listdir("/proc/self/fd"))).said()
            assert {int(name) for name in kept.split(",")} >= numbers - {max(numbers)}
        checkpointer.save(2, STATE).wait()


def test_the_descriptors_of_a_child_take_no_write(path: Path) -> None:
    def write() -> str:
        said = []
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == "/dev/null" and int(name) > 2:
                    os.write(int(name), b"x")
            except OSError as error:
                said.append(errno.errorcode[error.errno or 0])
        return ",".join(said)

    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, STATE).wait()
        assert "EBADF" in Child(write).said()


def test_a_process_at_its_limit_of_descriptors_forks(path: Path) -> None:
    code = """
import os, resource, sys
import numpy as np, pccheck
checkpointer = pccheck.Checkpointer(sys.argv[1])
checkpointer.save(1, {"x": np.zeros(9)}).wait()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
held = []
try:
    while True:
        held.append(os.open("/dev/zero", os.O_RDONLY))
except OSError:
    pass
child = os.fork()
if child == 0:
    os.close(held.pop())
    links = [os.readlink(f"/proc/self/fd/{name}") for name in range(3, 39)
             if os.path.exists(f"/proc/self/fd/{name}")]
    os._exit(any("run.pcc" in link for link in links) or "/dev/null" not in links)
assert os.waitpid(child, 0)[1] == 0
try:
    pccheck.load(sys.argv[1])
except pccheck.ResourceLimit as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert "may have 40 files open, and has; close some, or raise that limit" in ended.stdout


def test_programs_inherit_nothing(path: Path, backend: str) -> None:
    with pccheck.Checkpointer(path, backend=backend) as checkpointer:
        checkpointer.save(1, STATE).wait()
        for before in (None, lambda: None):
            listed = subprocess.run(
                ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True,
                close_fds=False, preexec_fn=before,
            )  # fmt: skip
            assert "run.pcc" not in listed.stdout and "io_uring" not in listed.stdout


def test_locked_names_who_holds_the_file_now(
    path: Path, run_child: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import fcntl, os, struct, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR)
lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
print("held", flush=True)
time.sleep(60)
"""
    # The medium names this process, which has closed the file.
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, STATE).wait()
    holder = run_child(code, path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(pccheck.Locked, match=rf"\(process {holder.pid}, \S*python\S* -c"):
        pccheck.Checkpointer(path)


# -- use in the child


def test_everything_of_the_parent_is_refused_in_the_child(path: Path) -> None:
    with pccheck.Checkpointer(path) as checkpointer:
        handle = checkpointer.save(1, STATE)
        handle.wait()
        with Reader(path) as reader:
            reader.select_newest()
            uses: list[Callable[[], Any]] = [
                lambda: checkpointer.save(2, STATE), lambda: handle.wait(), handle.done,
                lambda: handle.state, handle.wait_staged, handle.exception,
                checkpointer.stats, lambda: checkpointer.rewind(1), reader.list, reader.verify,
                reader.report, reader.manifest, reader.select_newest, reader.rejections,
                lambda: handle.sequence, checkpointer.load, checkpointer.resume,
            ]  # fmt: skip
            for use in uses:
                said = Child(functools.partial(lambda use: str(use()), use)).said()
                assert said.startswith("Forked: "), use
            assert f"process {os.getpid()}" in Child(lambda: str(uses[0]())).said()
            assert "parent" in Child(lambda: repr(handle)).said()
            # Reading takes nothing of the parent's.
            assert Child(lambda: str(pccheck.load(path)["x"][3])).said() == "3.0"
        checkpointer.save(2, STATE).wait()


def test_what_ends_in_the_child_leaves_the_parent_alone(path: Path, backend: str) -> None:
    with pccheck.Checkpointer(path, backend=backend) as checkpointer:
        checkpointer.save(1, STATE).wait()
        handle = checkpointer.save(2, STATE)
        with Reader(path) as reader:
            reader.select_newest()

            def end() -> str:
                import gc

                nonlocal handle
                checkpointer.close()
                reader.close()
                del handle
                gc.collect()
                return "ended"

            assert Child(end).said() == "ended"
            reader.verify()
        handle.wait()
        assert checkpointer.save(3, STATE).wait().durable


def test_a_child_saves_into_a_file_of_its_own(path: Path, tmp_path: Path, backend: str) -> None:
    own = tmp_path / "own.pcc"

    def save() -> str:
        with pccheck.Checkpointer(own, backend=backend) as mine:
            return str(mine.save(7, STATE).wait().durable)

    with pccheck.Checkpointer(path, backend=backend) as checkpointer:
        checkpointer.save(1, STATE)
        assert Child(save).said() == "True"
    assert pccheck.load(own)["x"][5] == 5


def test_a_child_of_a_child_opens_the_file_when_the_others_are_gone(path: Path) -> None:
    """A daemon: opened before the two forks, used after them."""
    with pccheck.Checkpointer(path) as checkpointer:
        checkpointer.save(1, STATE).wait()

        def daemon() -> str:
            return Child(lambda: str(checkpointer.save(2, STATE))).said()

        said = Child(daemon).said()
    assert said.startswith("Forked: ") and "after the fork" in said


# -- locks of Python and of the library that are held at the fork


def test_forks_at_any_time_end(path: Path, backend: str) -> None:
    """One thread saves, loads, opens and closes; another forks meanwhile."""
    stop = threading.Event()
    counts = {"save": 0, "load": 0, "open": 0}
    failures: list[BaseException] = []

    def work() -> None:
        step = 0
        try:
            while not stop.is_set():
                with pccheck.Checkpointer(path, in_flight=3, backend=backend) as mine:
                    shared.append(mine)
                    counts["open"] += 1
                    for _ in range(5):
                        step += 1
                        shared.append(mine.save(step, STATE))
                        counts["save"] += 1
                    pccheck.load(path)
                    counts["load"] += 1
                del shared[:-6]
        except BaseException as error:
            failures.append(error)

    shared: list[Any] = []
    thread = threading.Thread(target=work)
    thread.start()

    def use() -> str:
        import gc

        for item in list(shared):
            for name in ("close", "wait", "stats"):
                try:
                    getattr(item, name, str)()
                except (pccheck.Forked, pccheck.Closed):
                    pass
        shared.clear()
        gc.collect()
        return "ended"

    try:
        began, children = time.monotonic(), 0
        while time.monotonic() - began < 6 or children < 30:
            assert Child(use).said() == "ended"
            children += 1
    finally:
        stop.set()
        thread.join()
    assert not failures, failures
    assert all(counts.values()), counts


def test_a_child_that_lives_does_not_keep_a_file_locked_whenever_it_was_forked(
    path: Path, backend: str
) -> None:
    """Between open(2) and the lock, while a ring is set up, while a file is closed."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                with pccheck.Checkpointer(path, backend=backend) as mine:
                    mine.save(1, {"x": np.zeros(3)})
        except BaseException as error:
            failures.append(error)

    pccheck.Checkpointer(path, capacity="1 MiB").close()
    thread = threading.Thread(target=work)
    thread.start()
    children = []
    try:
        for _ in range(60):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)
            time.sleep(0.005)
    finally:
        stop.set()
        thread.join()
        for pid in children:
            links = ""
            for name in os.listdir(f"/proc/{pid}/fd"):
                links += os.readlink(f"/proc/{pid}/fd/{name}")
            maps = Path(f"/proc/{pid}/maps").read_text()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert "run.pcc" not in links and "io_uring" not in links + maps
    assert not failures, failures


# -- what was prepared before the fork


@pytest.mark.parametrize("module", [pccheck, pcc])
def test_a_checkpointer_without_a_file_yet_may_be_used_in_the_child(
    path: Path, module: Any
) -> None:
    checkpointer = module.Checkpointer(path)
    held = getattr(checkpointer, "_save_lock", threading.RLock())

    def hold() -> None:
        with held:
            time.sleep(1)

    thread = threading.Thread(target=hold)
    thread.start()
    time.sleep(0.2)

    def save() -> str:
        state = {"x": torch.ones(3)} if module is pcc else STATE
        handle = checkpointer.save(1, **state) if module is pcc else checkpointer.save(1, state)
        durable = handle.wait().durable
        checkpointer.close()
        return str(durable)

    assert Child(save).said() == "True"
    thread.join()
    assert pccheck.load(path)["x"] is not None


def test_a_signal_of_the_parent_does_not_end_a_child_that_closes(path: Path) -> None:
    with pytest.raises(SystemExit):
        with pccheck.Checkpointer(path, on_sigterm="save") as checkpointer:
            checkpointer.save(1, STATE).wait()
            signal.raise_signal(signal.SIGTERM)

            def close() -> str:
                checkpointer.close()
                return "closed"

            assert Child(close).said() == "closed"
            checkpointer.save(2, STATE)
    assert pccheck.checkpoints(path)[0].step == 2
