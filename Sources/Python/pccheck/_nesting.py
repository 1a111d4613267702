"""Key paths of nested states, and the error for nesting that has no end."""

from __future__ import annotations

from collections import deque
from typing import Any

from ._printable import printable

_SHOWN_KEY_COUNT = 8
_SEQUENCES = (list, tuple, deque, set, frozenset)


def joined(path: str, key: object) -> str:
    """A key path as messages and tensor names show it: ``optimizer.state.0.exp_avg``."""
    return f"{path}.{key}" if path else str(key)


def endless(state: object) -> ValueError:
    """The error for a state whose nesting has no end, or none that can be followed."""
    path, is_cycle = _deepest(state)
    path = printable(path)
    keys = path.split(".")
    shown = ".".join(keys[:_SHOWN_KEY_COUNT]) + (".…" if len(keys) > _SHOWN_KEY_COUNT else "")
    what = "contains itself" if is_cycle else f"is nested {len(keys)} deep"
    return ValueError(
        f"key '{shown}': the state {what}, and cannot be stored in a checkpoint; leave that key out"
    )


def _deepest(state: object) -> tuple[str, bool]:
    """The path to a container that lies inside itself, else the longest one; without recursion."""
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
