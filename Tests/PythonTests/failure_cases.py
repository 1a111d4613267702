"""Runs the cases of spec/PYTHON-FAILURES.md, and collects what they say.

As a program it takes the blocks of one case as JSON on its standard input, and answers with what
each said: for cases whose system calls are made to fail.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PCINSPECT = ROOT / "build" / "bin" / "pcinspect"
#: Names the file that, once it is there, makes writes or flushes fail.
TRIGGER = "PCCHECK_TEST_TRIGGER"

PRELUDE = """
import signal, subprocess, pccheck, pccheck.numpy, numpy as np
state = {"x": np.zeros(1 << 20)}
slow = {"pool": "8 MiB", "chunk": "1 MiB"}
"""
TORCH_PRELUDE = """
import torch, pccheck.torch as pcc
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
large = nn.Linear(2048, 2048, bias=False)
optimizer = torch.optim.AdamW(model.parameters())
"""

#: A loop that saves until it is ended; it says which steps are durable.
SAVING = """
import sys, numpy as np, pccheck.numpy
state = {"x": np.zeros(1 << 20)}
with pccheck.numpy.Checkpointer(sys.argv[1], pool="8 MiB", chunk="1 MiB") as ckpt:
    start = ckpt.resume(state=state)
    for step in range(start, 10 ** 6):
        state["x"][:] = step
        handle = ckpt.save(step, state=state)
        handle.wait_staged()
        if step % 3 == 0:
            handle.wait()
            print(step, flush=True)
"""

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

/* The number in the file says how many are let pass. */
static int fails(const char *what) {
    static int passed;
    char path[4096];
    int count;
    snprintf(path, sizeof path, "%s%s", getenv("PCCHECK_TEST_TRIGGER"), what);
    FILE *trigger = fopen(path, "r");
    if (trigger == NULL) return 0;
    int read = fscanf(trigger, "%d", &count);
    fclose(trigger);
    if (read != 1 || passed++ < count) return 0;
    errno = EIO;
    return 1;
}
ssize_t pwrite(int file, const void *data, size_t count, off_t offset) {
    ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    /* Data, not the small blocks that say what there is. */
    return count > 65536 && fails("-writes") ? -1 : next(file, data, count, offset);
}
ssize_t pwrite64(int file, const void *data, size_t count, off_t offset) {
    return pwrite(file, data, count, offset);
}
int fsync(int file) {
    int (*next)(int) = dlsym(RTLD_NEXT, "fsync");
    return fails("-flushes") ? -1 : next(file);
}
int fdatasync(int file) {
    int (*next)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return fails("-flushes") ? -1 : next(file);
}
"""


class Case:
    """One section of the page while it runs: its names, and what it needs of the world."""

    def __init__(self, needs_torch: bool = True) -> None:
        self._children: list[subprocess.Popen[str]] = []
        self._said: list[str] = []
        helpers: list[Callable[..., Any]] = [
            fill_disk, free_disk, make_read_only, damage, self.another_process_opens,
            self.in_forked_child, self.killed_while_it_saves, self.run_program, interrupt_soon,
            fail_writes, fail_flushes, pin_newest, close_soon, limit_file_size,
            self.module_on_gpu, self.lose_device,
        ]  # fmt: skip
        self._names: dict[str, Any] = {helper.__name__: helper for helper in helpers}
        prelude = PRELUDE + (TORCH_PRELUDE if needs_torch else "")
        exec(compile(prelude, "prelude", "exec"), self._names)

    def run(self, code: str, title: str) -> list[str]:
        """What the code prints, logs and raises."""
        self._said = []
        logger, keeper = logging.getLogger("pccheck"), _Keeper(self._said)
        logger.addHandler(keeper)
        try:
            exec(compile(code, title, "exec"), self._names)
        except BaseException as error:
            self._said.append(described(error))
        finally:
            logger.removeHandler(keeper)
        # The page names files as its programs do.
        folder = os.getcwd() + os.sep
        return [text.replace(folder, "") for text in self._said]

    def end(self) -> None:
        """Ends what the case started, and closes what it left open."""
        for child in self._children:
            child.kill()
            child.communicate()
        import pccheck
        from pccheck._core import open_files

        # Before they are dropped: what closes gives SIGTERM back, too. A dead device is an error.
        for checkpointer in open_files.checkpointers():
            with contextlib.suppress(pccheck.CheckpointError):
                checkpointer.close()
        limit_file_size(None)
        self._names.clear()

    # -- what the page calls

    def another_process_opens(self, path: str) -> subprocess.Popen[str]:
        code = "import pccheck, sys; c = pccheck.Checkpointer(sys.argv[1], capacity='1 MiB');"
        return self._start(code + "print('open', flush=True); sys.stdin.read()", path)

    def _start(self, code: str, path: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._children.append(child)
        assert child.stdout is not None and child.stdout.readline()
        return child

    def killed_while_it_saves(self, path: str) -> None:
        child = self._start(SAVING, path)
        assert child.stdout is not None and child.stdout.readline() and child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL

    def in_forked_child(self, action: Callable[[], object]) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                action()
            except BaseException as error:
                os.write(writing, described(error).encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as answer:
            self._said.append(answer.read())
        os.waitpid(child, 0)

    def module_on_gpu(self) -> Any:
        """A module on a device; a stand-in is used for its driver, which stays in the process."""
        import torch
        from stand_in import StandIn

        from pccheck._torch.loading.decoder import TorchMemory
        from pccheck._torch.saving import waiting
        from pccheck.torch import Checkpointer

        self._device = StandIn()
        Checkpointer._devices = TorchMemory.devices = waiting.devices = self._device
        module = torch.nn.Linear(64, 64)
        for parameter in module.parameters():
            parameter.data = self._device.put(parameter.data)
        return module

    def lose_device(self) -> None:
        """As a kernel of the user does that uses memory which is not its own."""
        self._device.fail("copy", 700, is_sticky=True)

    def run_program(self, code: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        lines = ended.stderr.splitlines()
        starts = [index for index, line in enumerate(lines) if line.startswith(" ")]
        frames = [index for index in starts if lines[index].startswith("  File")]
        after = frames[-1] + 1 if frames else 0
        while after < len(lines) and lines[after].startswith("    "):
            after += 1
        self._said.append("\n".join(lines[after:]))


class _Keeper(logging.Handler):
    """Keeps what is logged from warnings up."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(f"{record.levelname} {record.getMessage()}")


def described(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def fill_disk() -> None:
    with open("filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def free_disk() -> None:
    os.unlink("filler")


def make_read_only() -> None:
    subprocess.run(["mount", "-o", "remount,ro", os.getcwd()], check=True)


def damage(path: str, step: int) -> None:
    """Flips a bit in the middle of what is stored of a step."""
    said = subprocess.run(
        [PCINSPECT, "slots", "--json", path], capture_output=True, check=True, timeout=60
    )
    for slot in json.loads(said.stdout)["slots"]:
        header = slot["header"]
        if header is not None and header["step"] == step:
            offset = slot["data_offset"] + header["manifest_byte_count"] + 100
            with open(path, "r+b") as file:
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 0x40]))
            return
    raise AssertionError(f"step {step} is not in {path}")


def interrupt_soon() -> None:
    # At once: what came after the wait had ended would strike whoever runs the tests.
    threading.Timer(0, signal.raise_signal, [signal.SIGINT]).start()


def pin_newest(path: str) -> Any:
    """A reader that holds the newest checkpoint, as a lazy load does."""
    from pccheck._core.reader import Reader

    reader = Reader(path)
    reader.select(reader.list()[0].sequence)
    return reader


def close_soon(reader: Any) -> None:
    threading.Timer(3, reader.close).start()


def limit_file_size(byte_count: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if byte_count is None else byte_count, hard))


def fail_writes() -> None:
    Path(os.environ[TRIGGER] + "-writes").write_text("0")


def fail_flushes(after: int = 0) -> None:
    Path(os.environ[TRIGGER] + "-flushes").write_text(str(after))


@contextlib.contextmanager
def case(needs_torch: bool = True) -> Iterator[Case]:
    started = Case(needs_torch)
    try:
        yield started
    finally:
        started.end()


def main() -> None:
    blocks = json.load(sys.stdin)
    with case(needs_torch=any("pcc.Checkpointer" in block for block in blocks)) as running:
        said = [running.run(code, "case") for code in blocks]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
