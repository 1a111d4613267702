"""What is said of a value that cannot be stored: where it is, what it is, what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

from .._core.printable import printable

_SUPPORTED = (
    "supported are tensors, arrays, dict, list, tuple, set, str, bytes, int, float, complex, bool, "
    "None, dates, paths, enumerations, named tuples, deque, defaultdict, random generators, and "
    "objects with state_dict() and load_state_dict()"
)
#: Modules that implement others, and whose name nobody writes.
_PUBLIC_MODULES = {"_io": "io", "_thread": "threading", "_random": "random"}


def refusal(value: object, path: str, reason: str | None = None) -> TypeError:
    """The error for a value that cannot be stored exactly."""
    why = reason or _advice(value) or _SUPPORTED
    where = printable(path) or "value"
    return TypeError(
        f"key '{where}': {_named(type(value))} cannot be stored in a checkpoint; {why}"
    )


def key_refusal(key: object, path: str) -> TypeError:
    """The error for a key of a dictionary or an item of a set."""
    return TypeError(
        f"key '{printable(path) or 'value'}': a dict key or set item of type "
        f"{printable(type(key).__qualname__)} cannot be stored in a checkpoint; supported are str, "
        "int, float, complex, bool, bytes, None, dates, paths, enumerations, and tuples and "
        "frozensets of them"
    )


def refuse_attributes(value: object, path: str, known: Set[str] = frozenset()) -> None:
    """Raises for a dictionary that has attributes besides its items, which would be lost."""
    others = vars(value).keys() - known
    if others:
        name = printable(str(min(others)))
        raise refusal(
            value, path, f"its attribute '{name}' has no stored form; remove it, or save dict(…)"
        )


def refuse_pairs(document: Any, text: str) -> None:
    """Texts with both halves of a surrogate pair, which JSON reads as the one character that they
    encode. ``text`` is the JSON of the document: without such an escape nothing is looked at."""
    if "\\ud" not in text:
        return
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and not value.isascii():
            joined = value.encode("utf-16-le", "surrogatepass")
            if joined.decode("utf-16-le", "surrogatepass") != value:
                raise TypeError(
                    f"{printable(value[:40])!r} holds both halves of a surrogate pair as two "
                    "characters, which come back as one; write the character itself"
                )


def _named(kind: type) -> str:
    module = _PUBLIC_MODULES.get(kind.__module__, kind.__module__)
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {printable(name)}"


def _advice(value: Any) -> str | None:
    """What to do about values that programs often hold."""
    if isinstance(value, type) or isinstance(value, (types.ModuleType, types.FunctionType)):
        return "save its name, and find it again"
    if callable(value) and hasattr(value, "__name__"):
        return "save its name, and find it again"
    if isinstance(value, io.BytesIO):
        return "save its content: value.getvalue()"
    if isinstance(value, io.StringIO):
        return "save its content: value.getvalue()"
    if isinstance(value, io.IOBase):
        return "save its path and its position, and open it again"
    if dataclasses.is_dataclass(value):
        return "save dataclasses.asdict(value), or give it state_dict() and load_state_dict()"
    if type(value) in (types.SimpleNamespace, argparse.Namespace):
        return "save vars(value)"
    if isinstance(value, Iterator):
        return "save how far it has come, and make it again"
    if isinstance(value, os.PathLike):
        return "save os.fspath(value)"
    for kind in (bool, str, bytes, bytearray, int, float, complex, tuple, list, dict, set,
                 frozenset):  # fmt: skip
        if isinstance(value, kind):
            return f"its class is lost where that is not imported: save {kind.__name__}(value)"
    if isinstance(value, Mapping):
        return "save dict(value)"
    if isinstance(value, Set):
        return "save set(value)"
    if type(value).__module__ in ("_thread", "threading", "weakref", "_weakref"):
        return "leave it out, and make it again"
    return None
