"""Taking the state out of live objects, and putting it back where it came from."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import numpy as np

from .._core.printable import printable
from ..errors import CheckpointError
from . import generators
from .comparing import ResumeReport
from .kinds import is_namedtuple
from .nesting import joined

# Used by resume to distinguish "not in the checkpoint" from a stored None.
_MISSING = object()
#: What a loaded value goes into, besides objects with a state of their own.
FILLED_TYPES: tuple[type, ...] = (np.ndarray, *generators.GENERATOR_TYPES)
#: Of values that hold no others, and have no state beside themselves.
PLAIN_TYPES: frozenset[type] = frozenset({np.ndarray, bool, int, float, str, bytes, type(None)})


def is_stateful(value: object) -> bool:
    """True for objects that return and accept their own state."""
    kind: Any = type(value)
    return _is_stateful_type(kind)


@functools.lru_cache(maxsize=512)
def _is_stateful_type(kind: type) -> bool:
    return callable(getattr(kind, "state_dict", None)) and callable(
        getattr(kind, "load_state_dict", None)
    )


@functools.lru_cache(maxsize=512)
def _may_hold_objects(kind: Any) -> bool:
    """Whether a value of this type is, or may contain, an object with a state of its own."""
    return issubclass(kind, (dict, list, tuple, deque)) or _is_stateful_type(kind)


def _holding_types(items: Iterable[object]) -> set[type]:
    """The types of the items that are, or may contain, objects with a state of their own."""
    # A state may have 100,000 items, but few types.
    return {kind for kind in set(map(type, items)) if _may_hold_objects(kind)}


def stateful_objects(value: object) -> Iterator[object]:
    """Every object with a state of its own in a nest of containers."""
    return (found for _, found in named_objects(value))


def named_objects(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every object with a state of its own in a nest of containers, with its key path."""
    if is_stateful(value):
        yield path, value
    elif isinstance(value, dict):
        kinds = _holding_types(value.values())
        for key, item in value.items() if kinds else ():
            if type(item) in kinds:
                yield from named_objects(item, joined(path, key))
    elif isinstance(value, (list, tuple, deque)):
        kinds = _holding_types(value)
        for index, item in enumerate(value) if kinds else ():
            if type(item) in kinds:
                yield from named_objects(item, joined(path, index))


def collect(value: Any) -> Any:
    """A nest with the state of its stateful objects in their place."""
    if is_stateful(value):
        return value.state_dict()
    return mapped(value, collect, PLAIN_TYPES)


def mapped(
    value: Any, change: Callable[[Any], Any], unchanged: Set[type] = frozenset()
) -> Any:
    """A container like this one with every item changed; anything else as it is.

    Items of the types ``unchanged`` are known to stay as they are: a state may have 100,000.
    """
    kind = type(value)
    if kind is dict:
        if set(map(type, value.values())) <= unchanged:
            return value.copy()
        return {
            key: item if type(item) in unchanged else change(item) for key, item in value.items()
        }
    if kind in (list, tuple):
        return kind([item if type(item) in unchanged else change(item) for item in value])
    if kind is deque:
        return deque(map(change, value), value.maxlen)
    if kind in (OrderedDict, defaultdict):
        copy = value.copy()
        for key, item in value.items():
            if type(item) not in unchanged:
                copy[key] = change(item)
        if kind is OrderedDict:
            # Such as what torch keeps in the state of a module.
            vars(copy).update(vars(value))
        return copy
    if isinstance(value, tuple) and is_namedtuple(kind):
        return tuple.__new__(kind, [change(item) for item in value])
    return value


def fills_in_place(target: object, kinds: tuple[type, ...] = FILLED_TYPES) -> bool:
    """True when a loaded value goes into this object, or into one in it."""
    if isinstance(target, (dict, list, tuple, deque)):
        items = target.values() if isinstance(target, dict) else target
        return any(fills_in_place(item, kinds) for item in items)
    return isinstance(target, kinds) or is_stateful(target)


def fixed_error(name: str, target: object) -> TypeError:
    """The error for a live value that is to become another one, and cannot."""
    return TypeError(
        f"'{printable(name)}' is of type {type(target).__qualname__}, which cannot be changed in "
        "place, and the checkpoint has another value; pass a dict that holds it, or leave it out "
        "and read it from load()"
    )


class Restorer:
    """Puts loaded state into live objects; what cannot be changed in place is an error."""

    #: What is filled, besides objects with a state of their own.
    filled_types: tuple[type, ...] = FILLED_TYPES

    def __init__(self) -> None:
        #: Records what a part did not accept of what was loaded for it.
        self.report = ResumeReport()

    def restore_parts(
        self, targets: dict[str, Any], loaded: dict[str, Any], report: ResumeReport | None = None
    ) -> None:
        """Gives each part what was loaded for it; ``report`` records how it fitted."""
        self.report = report or self.report
        for name, target in targets.items():
            if name in loaded:
                self.restore(name, target, loaded[name])

    def restore(self, name: str, target: Any, value: Any) -> None:
        """Gives `target` the state `value`."""
        if is_stateful(target):
            target.load_state_dict(value)
        elif isinstance(target, np.ndarray):
            self._restore_array(name, target, value)
        elif isinstance(target, dict):
            self._restore_dict(name, target, value)
        elif isinstance(target, (list, deque)):
            self._restore_list(name, target, value)
        elif isinstance(target, generators.GENERATOR_TYPES):
            generators.restore(name, target, value)
        elif type(target) in (set, bytearray):
            self._restore_whole(name, target, value)
        elif isinstance(target, tuple):
            self._expect(name, value, type(target), len(target))
            for index, item in enumerate(target):
                self.restore(f"{name}.{index}", item, value[index])
        else:
            self.restore_other(name, target, value)

    def restore_other(self, name: str, target: Any, value: Any) -> None:
        """A target that is not a container: only equal values need no change."""
        if type(target) is type(value) and target == value:
            return
        raise fixed_error(name, target)

    def _restore_array(self, name: str, target: np.ndarray, value: Any) -> None:
        if value is target:
            return
        if not isinstance(value, np.ndarray) or value.shape != target.shape:
            raise CheckpointError(
                f"'{name}' was saved as {_describe(value)} and cannot fill {_describe(target)}"
            )
        np.copyto(target, value, casting="unsafe")

    def _restore_dict(self, name: str, target: dict[Any, Any], value: Any) -> None:
        if not isinstance(value, dict):
            raise CheckpointError(f"'{name}' was saved as {_describe(value)}, not as a dict")
        for key in list(target):
            saved = value.get(key, _MISSING)
            if not self.fills_in_place(target[key]):
                continue
            if saved is _MISSING:
                # Known and reported by now, or asked to be passed over.
                continue
            self.restore(joined(name, key), target[key], saved)
        kept = {key: item for key, item in target.items() if self.fills_in_place(item)}
        target.clear()
        target.update({key: kept.pop(key, item) for key, item in value.items()})
        target.update(kept)

    def _restore_list(self, name: str, target: Any, value: Any) -> None:
        if any(self.fills_in_place(item) for item in target):
            self._expect(name, value, type(target), len(target))
            for index, item in enumerate(target):
                if self.fills_in_place(item):
                    self.restore(f"{name}.{index}", item, value[index])
                else:
                    target[index] = value[index]
            return
        self._expect(name, value, type(target), None)
        if isinstance(target, deque) and target.maxlen is not None:
            if len(value) > target.maxlen:
                raise CheckpointError(
                    f"'{name}' was saved as {_describe(value)}, but holds at most {target.maxlen}"
                )
        target.clear()
        target.extend(value)

    def _restore_whole(self, name: str, target: Any, value: Any) -> None:
        """A set or a bytearray."""
        if type(value) is not type(target):
            raise CheckpointError(
                f"'{name}' was saved as {_describe(value)}, not as a {type(target).__name__}"
            )
        target.clear()
        (target.update if isinstance(target, set) else target.extend)(value)

    def fills_in_place(self, target: object) -> bool:
        """True when a loaded value goes into this object rather than in its place."""
        return fills_in_place(target, self.filled_types)

    def _expect(self, name: str, value: Any, kind: type, count: int | None) -> None:
        is_kind = isinstance(value, (list, tuple, deque)) and type(value) is kind
        if not is_kind or (count is not None and len(value) != count):
            length = "" if count is None else f" of {count}"
            raise CheckpointError(
                f"'{name}' was saved as {_describe(value)}, not as a {kind.__name__}{length}"
            )


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, (list, tuple, deque)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__qualname__}"


def python_and_numpy_random_state() -> dict[str, Any]:
    """The state of the global generators of `random` and `numpy.random`."""
    return {
        "python": generators.python_state(random),
        "numpy": np.random.get_state(legacy=False),
    }


def set_python_and_numpy_random_state(state: dict[str, Any]) -> None:
    """Puts the global generators back."""
    generators.set_python_state(random, state["python"])
    np.random.set_state(state["numpy"])
