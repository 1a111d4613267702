"""The checkpointers of this process that hold a file open: for messages, and to close them."""

from __future__ import annotations

import os
import sys
import weakref
from pathlib import Path
from typing import Any

from ..errors import Locked

_PACKAGE = str(Path(__file__).resolve().parents[1])
_open: weakref.WeakSet[Any] = weakref.WeakSet()


def add(checkpointer: Any) -> None:
    """Notes one that opened its file."""
    _open.add(checkpointer)


def checkpointers() -> list[Any]:
    """Those that are open, in the order of their paths."""
    process = os.getpid()
    held = [item for item in list(_open) if item.is_open and item._process == process]
    return sorted(held, key=lambda item: str(item.path))


def close_all() -> int:
    """Waits until everything is durable and closes every file; returns how many there were."""
    held = checkpointers()
    for item in held:
        item.close()
    return len(held)


def explain(path: str, error: Locked, opener: object) -> None:
    """Names in the error the other checkpointer of this process that has the file open."""
    for item in checkpointers():
        if item is opener:
            continue
        try:
            is_same = os.path.samefile(item.path, path)
        except OSError:
            continue
        if is_same:
            error.reword(
                f"{path}: this process has the file open already, since {item.opened_at}: "
                f"{item!r}; use that one, or close() it first (in a notebook, where the cell"
                " that opened it runs again: pccheck.close_all())"
            )
            return


def no_pickle(item: object, path: str) -> TypeError:
    """Why an object with an open file can be neither pickled nor copied."""
    return TypeError(
        f"{path}: a {type(item).__name__} cannot be pickled or copied, as its file has one writer, "
        "in this process; leave it out (in Lightning save_hyperparameters(ignore=[…]) with the "
        "name of the argument), or pass the path, and open the file where it is needed"
    )


def place_of_caller() -> str:
    """File and line of the innermost call from outside of this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        if frame.f_back is None:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
