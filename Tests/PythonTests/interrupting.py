"""Interrupts, or forks, at the places of the package that an action runs.

    python interrupting.py FILE ACTION,… raise|fork line|opcode FIRST STRIDE

A place is the n-th line, or byte code, of the package that the action runs. KeyboardInterrupt is
raised, or a child is forked, at place FIRST, then at FIRST + STRIDE, and so on, until the action
ends before it comes to the place. Whatever must hold is checked in between. The program prints of
each action how many places there were, and how many it struck.
"""

from __future__ import annotations

import dis
import fcntl
import functools
import gc
import logging
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pccheck
import pccheck.numpy
import pccheck.torch as pcc
import torch

from pccheck._core.handle import SaveHandle

PACKAGE = str(Path(pccheck.__file__).parent)
_FLOCK = "hhqqi4x"
#: A wait that takes longer has hung.
_SECONDS = 60
_CHECK_EVERY = 20


class World:
    """The state that is saved, and the checkpointer that the actions share."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.model = torch.nn.Linear(8, 8)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        self.array = np.arange(20_000, dtype=np.float64)
        self.step = 1
        self.checkpointer: Any = None
        self.other: Any = None
        self.opened = 0
        self.open()
        self.checkpointer.save(1, **self.parts).wait()

    def open(self, **options: Any) -> None:
        self.checkpointer = pcc.Checkpointer(self.path, in_flight=3, retain=2, **options)

    def next(self) -> int:
        self.step += 1
        return self.step

    def beside(self) -> str:
        """A path where nothing is."""
        self.opened += 1
        return f"{self.path}.{self.opened}"


# -- the actions


def save(world: World) -> None:
    world.checkpointer.save(world.next(), **world.parts)


def save_staged(world: World) -> None:
    world.checkpointer.save(world.next(), **world.parts, array=world.array, overlap=False)


def save_urgently(world: World) -> None:
    world.checkpointer.save(world.next(), **world.parts, urgent=True, metadata="a note").wait()


def save_plain(world: World) -> None:
    if world.other is None:
        world.other = pccheck.Checkpointer(world.beside(), in_flight=3, capacity="1 MiB")
    world.other.save(world.next(), {"x": [1, "a", None], "array": world.array}).wait_staged()


def save_first(world: World) -> None:
    path = world.beside()
    try:
        with pcc.Checkpointer(path, policy=1, prealloc="fallocate") as made:
            made.maybe_save(1, **world.parts)
    finally:
        for left in Path(path).parent.glob(Path(path).name + "*"):
            left.unlink()


def wait(world: World) -> None:
    handle = world.checkpointer.save(world.next(), **world.parts)
    handle.done()
    handle.wait_staged()
    handle.wait()
    handle.exception()


def step(world: World) -> None:
    """An optimizer waits before it changes what is saved."""
    world.checkpointer.save(world.next(), **world.parts)
    world.model(torch.ones(1, 8)).sum().backward()
    world.optimizer.step()


def load(world: World) -> None:
    assert pcc.load(world.path)["model"]["weight"].shape == (8, 8)


def load_into(world: World) -> None:
    into = {"model": {"weight": torch.zeros(8, 8)}}
    pcc.load(world.path, into=into)
    pcc.load_tensor(world.path, "model.weight")
    pcc.load_into(world.path, model=torch.nn.Linear(8, 8))


def load_lazily(world: World) -> None:
    lazy = pcc.load(world.path, lazy=True)
    assert lazy["model"]["weight"][1:3].shape == (2, 8)


def resume(world: World) -> None:
    world.checkpointer.resume(**world.parts)


def look(world: World) -> None:
    world.checkpointer.steps()
    world.checkpointer.stats()
    world.checkpointer.rewind(world.step)
    pccheck.report(world.path)
    repr(world.checkpointer)


def close(world: World) -> None:
    world.checkpointer.save(world.step, **world.parts)
    world.checkpointer.close()


def reopen(world: World) -> None:
    world.checkpointer.close()
    with pcc.Checkpointer(world.path, on_sigterm="save", debug="digest") as made:
        made.save(world.step, **world.parts)


ACTIONS: dict[str, Callable[[World], None]] = {
    action.__name__: action
    for action in (
        save, save_staged, save_urgently, save_plain, save_first, wait, step, load, load_into,
        load_lazily, resume, look, close, reopen,
    )
}  # fmt: skip


# -- what strikes


@functools.cache
def ends_of_with(code: CodeType) -> frozenset[int]:
    """Where the byte code of a function calls the `__exit__` of a `with` that ended well.

    No handler covers these places: what is raised there leaves the lock of the `with` taken. A
    tracer can raise there, a signal cannot. The interpreter looks for signals at the end of a
    call, at a jump back and at the start of a function. A call that ends the block is within it
    still, so that its handler runs; after it come three times None, and the call of `__exit__`,
    at whose end the lock is free.
    """
    steps = list(dis.get_instructions(code))
    names = [step.opname for step in steps]
    found: set[int] = set()
    for first in range(len(steps) - 3):
        loads = steps[first : first + 3]
        call = first + 3 + (names[first + 3] == "PRECALL")
        is_none = all(step.opname == "LOAD_CONST" and step.argval is None for step in loads)
        if is_none and names[call] == "CALL" and steps[call].arg == 2:
            found.update(step.offset for step in steps[first : call + 1])
    return frozenset(found)


class Striker:
    """Traces the package, and strikes at one place."""

    def __init__(self, blow: Callable[[], None], by_opcode: bool) -> None:
        self._blow = blow
        self._event = "opcode" if by_opcode else "line"
        # A fork raises nothing.
        self._spared = ends_of_with if blow is interrupt else spared_by_none
        self._place = 0
        self.count = 0

    def run(self, action: Callable[[World], None], world: World, place: int) -> None:
        self._place, self.count = place, 0
        sys.settrace(self._trace)
        try:
            action(world)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        # Nobody can help a finalizer that ends before its first line; what it calls is struck.
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "__del__":
            return None
        if event == "call":
            frame.f_trace_opcodes = self._event == "opcode"
        elif event == self._event and frame.f_lasti not in self._spared(code):
            self.count += 1
            if self.count == self._place:
                self._blow()
        return self._trace


def spared_by_none(_: CodeType) -> frozenset[int]:
    return frozenset()


def interrupt() -> None:
    sys.settrace(None)
    raise KeyboardInterrupt


def fork_in(world: World) -> Callable[[], None]:
    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            sys.settrace(None)
            signal.alarm(_SECONDS)
            try:
                use_in_child(world)
            except BaseException as error:
                print(f"in the child: {type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"the child ended with {status}"

    return fork


def use_in_child(world: World) -> None:
    """All that a child may do to what it inherited; nothing hangs, and nothing is saved."""
    for item in filter(None, (world.checkpointer, world.other)):
        for use in (item.stats, lambda item=item: item.save(10**6, x=world.array), item.close):
            try:
                use()
            except (pccheck.CheckpointError, TypeError):
                pass
    for name in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{name}"
        assert not (os.path.lexists(link) and os.readlink(link).startswith(world.path)), link
    try:
        pccheck.load(world.path)
    except pccheck.CheckpointError:
        # The action may be about to close, or to load, what cannot be had twice.
        pass
    world.checkpointer = world.other = None
    gc.collect()


# -- what must hold


def kinds_of_locks(path: str) -> set[int]:
    """Of the writer's byte and every slot's, as others find them."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        kinds = set()
        for start in [0, *range(1024, 1030)]:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
            kinds.add(struct.unpack(_FLOCK, answer)[0])
        return kinds
    finally:
        os.close(descriptor)


def tickets() -> int:
    return sum(type(item) is SaveHandle for item in gc.get_objects())


def check(world: World, place: int) -> None:
    """Everything works as if nothing had happened, and nothing is left of it."""
    gc.collect()
    # Memory that is read after it was freed is somebody else's by now.
    junk = [bytearray(200) for _ in range(2000)]
    for _ in range(3):
        world.checkpointer.save(world.next(), **world.parts).wait(timeout=_SECONDS)
    del junk
    loaded = pcc.load(world.path)
    assert torch.equal(loaded["model"]["weight"], world.model.weight), place
    del loaded
    for item in filter(None, (world.checkpointer, world.other)):
        item._engine.wait_finished()
    gc.collect()
    deadline = time.monotonic() + _SECONDS
    # The thread that decides on checkpoints may not have come to the last ones.
    while (handles := tickets()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert handles == 0, f"place {place}: {handles} tickets are left"
    assert fcntl.F_RDLCK not in kinds_of_locks(world.path), f"place {place}: a pin is left"
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("pccheck-approve") <= 4, names


def put_right(world: World, name: str) -> None:
    """What the owner of an interrupted action does: closes, and opens again."""
    if name not in ("close", "reopen"):
        return
    world.checkpointer.close()
    world.checkpointer = None
    try:
        world.open()
    except pccheck.Locked:
        # Interrupted, it may have left the file to the finalizer.
        gc.collect()
        world.open()


def run(path: str, name: str, blow: str, by_opcode: bool, first: int, stride: int) -> None:
    world = World(path)
    gc.collect()
    striker = Striker(interrupt if blow == "raise" else fork_in(world), by_opcode)
    place, struck = first, 0
    while True:
        striker.run(ACTIONS[name], world, place)
        assert gc.isenabled(), place
        put_right(world, name)
        if striker.count < place:
            break
        struck += 1
        if struck % _CHECK_EVERY == 0:
            check(world, place)
        place += stride
    check(world, place)
    world.checkpointer.close()
    if world.other is not None:
        world.other.close()
        os.unlink(world.other.path)
    gc.collect()
    assert kinds_of_locks(path) == {fcntl.F_UNLCK}
    assert torch.equal(pcc.load(path)["model"]["weight"], world.model.weight)
    print(name, striker.count, struck, flush=True)


if __name__ == "__main__":
    logging.getLogger("pccheck").setLevel(logging.CRITICAL)
    # What is raised in a finalizer goes no further.
    sys.unraisablehook = lambda _: None
    file, names, kind, unit, begin, every = sys.argv[1:]
    for chosen in names.split(","):
        print(f"{chosen}:", file=sys.stderr, flush=True)
        run(f"{file}-{chosen}", chosen, kind, unit == "opcode", int(begin), int(every))
