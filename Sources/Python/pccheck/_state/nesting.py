"""Key paths of nested states, and the error for nesting that has no end."""

from __future__ import annotations

from collections import deque
from typing import Any

from .._core.printable import printable

#: Containers within containers: as many as every reader can follow, however little of its stack
#: is left.
NESTING_LIMIT = 128
_SHOWN_KEY_COUNT = 8
_SEQUENCES = (list, tuple, deque, set, frozenset)


def joined(path: str, key: object) -> str:
    """A key path as messages and tensor names show it: ``optimizer.state.0.exp_avg``."""
    text = key_text(key)
    return f"{path}.{text}" if path else text


def key_text(key: object) -> str:
    """A key as messages and tensor names show it."""
    try:
        return str(key)
    except ValueError:
        # Python does not print integers of more than a few thousand digits.
        return f"<{type(key).__name__}>"


def endless(state: object) -> ValueError:
    """The error for a state whose nesting has no end, or none that can be followed."""
    path, is_cycle = _deepest(state)
    path = printable(path)
    keys = path.split(".")
    shown = ".".join(keys[:_SHOWN_KEY_COUNT]) + (".…" if len(keys) > _SHOWN_KEY_COUNT else "")
    what = (
        "contains itself, and"
        if is_cycle
        else f"is nested {len(keys)} deep, more than {NESTING_LIMIT}, and"
    )
    return ValueError(
        f"key '{shown}': the state {what} cannot be stored in a checkpoint; leave that key out"
    )


def _deepest(state: object) -> tuple[str, bool]:
    """The path to a container that is inside itself, else the longest one; without recursion."""
    longest = ""
    depth = 0
    above: list[int] = []
    pending: list[tuple[object, str, int]] = [(state, "", 0)]
    while pending:
        value, path, level = pending.pop()
        del above[level:]
        if id(value) in above:
            return path, True
        above.append(id(value))
        if level > depth:
            longest, depth = path, level
        if isinstance(value, dict):
            items: Any = value.items()
        elif isinstance(value, _SEQUENCES):
            items = enumerate(value)
        else:
            continue
        pending += [
            (item, joined(path, key), level + 1)
            for key, item in items
            if isinstance(item, (dict, *_SEQUENCES))
        ]
    return longest, False
