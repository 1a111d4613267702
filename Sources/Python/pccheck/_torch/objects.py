"""What a save records of its objects besides their state: their class, and, of optimizers, the
names of their parameters. spec/STATE.md specifies how it is stored.

The state of an optimizer numbers its parameters. Their names say which is which when the live
optimizer has them in another order, or has more of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from .._state.comparing import OBJECTS_KEY, WRAPPERS
from .._state.nesting import joined
from .._state.stateful import named_objects
from ..errors import StateFormatError
from .trainable import Trainable

_VERSION = 1
#: Modules that put themselves around another one, and their name before all of its keys.
_WRAPPING_NAMES = {prefix.rstrip(".") for prefix in WRAPPERS}


def objects_metadata(state: dict[str, Any]) -> dict[str, str]:
    """The record of the objects of a state that is being saved, as metadata of the payload."""
    objects = dict(named_objects(state))
    is_wanted = any(isinstance(value, torch.optim.Optimizer) for value in objects.values())
    names = ParameterNames(state) if is_wanted else None
    found = {}
    for path, value in objects.items():
        record: dict[str, Any] = {}
        if has_recorded_class(value):
            record.update(class_record(value))
        if names is not None and isinstance(value, torch.optim.Optimizer):
            groups = names.of(value)
            if any(item for group in groups for item in group):
                record["parameters"] = [[_recorded(item) for item in group] for group in groups]
        if record:
            found[path] = record
    if not found:
        return {}
    document = {"version": _VERSION, "objects": found}
    return {OBJECTS_KEY: json.dumps(document, separators=(",", ":"))}


def parsed_objects(text: str | None) -> dict[str, Any]:
    """The records by key path; none where nothing was recorded, or only a later version can say."""
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"the record of objects is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        return {}
    found = document.get("objects")
    if not isinstance(found, dict) or not all(isinstance(item, dict) for item in found.values()):
        raise StateFormatError("the record of objects has no 'objects'")
    return found


# -- classes


def has_recorded_class(value: Any) -> bool:
    """True for what only an object of the same class can make something of: optimizers,
    schedulers, and what else torch has. Modules go by their keys."""
    if isinstance(value, torch.nn.Module):
        return False
    if isinstance(value, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)):
        return True
    return type(value).__module__.split(".")[0] == "torch"


def class_record(value: Any) -> dict[str, Any]:
    """The class of an object, and of the schedulers that it runs."""
    kind = type(value)
    record: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    inside = getattr(value, "_schedulers", None)
    if isinstance(inside, (list, tuple)) and inside:
        record["schedulers"] = [class_record(item) for item in inside]
    return record


def is_same_class(saved: dict[str, Any], live: dict[str, Any]) -> bool:
    """True when the names of the classes agree; the modules that define them may have moved."""
    if str(saved.get("class")).split(".")[-1] != live["class"].split(".")[-1]:
        return False
    inside, own = saved.get("schedulers") or [], live.get("schedulers") or []
    return len(inside) == len(own) and all(map(is_same_class, inside, own))


def class_text(record: dict[str, Any], other: dict[str, Any]) -> str:
    """The class as a message names it; with its module when the other has the same name."""
    name = str(record.get("class"))
    short = name.split(".")[-1]
    inside = record.get("schedulers") or []
    if inside:
        return f"{short} of " + ", ".join(class_text(item, {}) for item in inside)
    return name if short == str(other.get("class")).split(".")[-1] else short


# -- names of parameters


#: All names of each parameter of a group; none for one of no module.
GroupNames = list[tuple[str, ...]]


class ParameterNames:
    """The parameters of the modules of a state by name, such as ``model.0.weight``; one that is
    tied, or in two modules of the state, has several names."""

    def __init__(self, state: Any) -> None:
        self.parameters: dict[str, torch.Tensor] = {}
        self._names: dict[int, list[str]] = {}
        for path, value in named_objects(state):
            module = value.model if isinstance(value, Trainable) else value
            if isinstance(module, torch.nn.Module):
                for key, parameter in module.named_parameters(remove_duplicate=False):
                    name = joined(path, key)
                    self.parameters.setdefault(name, parameter)
                    self._names.setdefault(id(parameter), []).append(name)

    def of(self, optimizer: torch.optim.Optimizer) -> list[GroupNames]:
        """The names of an optimizer's parameters by group."""
        return [
            [tuple(self._names.get(id(parameter), ())) for parameter in group["params"]]
            for group in optimizer.param_groups
        ]


def _recorded(names: tuple[str, ...]) -> str | list[str] | None:
    """The names of a parameter as they are stored."""
    return None if not names else names[0] if len(names) == 1 else list(names)


def recorded_names(node: Any) -> tuple[str, ...] | None:
    """The names of a parameter out of what was stored; None for what cannot be names."""
    names = [] if node is None else [node] if isinstance(node, str) else node
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else None


def find_parameters(
    wanted: Sequence[tuple[str, ...]], parameters: dict[str, torch.Tensor]
) -> list[torch.Tensor | None]:
    """The live parameters of saved names; wrappers that were added or taken off are no
    difference."""
    found = [
        next((parameters[name] for name in names if name in parameters), None) for names in wanted
    ]
    if all(item is not None for item in found):
        return found
    taken = {id(parameter) for parameter in found if parameter is not None}
    bare: dict[str, dict[int, torch.Tensor]] = {}
    for name, parameter in parameters.items():
        bare.setdefault(bare_name(name), {})[id(parameter)] = parameter
    for index, names in enumerate(wanted):
        candidates: dict[int, torch.Tensor] = {}
        for name in names if found[index] is None else ():
            candidates.update(bare.get(bare_name(name), {}))
        if len(candidates) == 1 and not candidates.keys() & taken:
            found[index] = next(iter(candidates.values()))
            taken |= candidates.keys()
    return found


def bare_name(key: str) -> str:
    """A key without what the wrappers around modules put into it."""
    return ".".join(name for name in key.split(".") if name not in _WRAPPING_NAMES)
