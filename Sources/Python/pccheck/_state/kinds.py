"""Values of Python's library in the state document, each under a tag of its own; spec/STATE.md.

What stands under the tag is the value for a reader that lacks the type. Nothing that a document
names is imported or called: a class counts only when it is there already, under its name.
"""

from __future__ import annotations

import functools
import keyword
import logging
import sys
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, EnumMeta, Flag
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any
from uuid import UUID

from ..errors import UnsupportedState
from .nesting import joined

log = logging.getLogger("pccheck")

#: What makes missing values of a `defaultdict`; any other factory is a program.
_FACTORIES: dict[str, Any] = {
    "int": int, "float": float, "complex": complex, "bool": bool, "str": str, "bytes": bytes,
    "list": list, "tuple": tuple, "dict": dict, "set": set, "frozenset": frozenset,
    "deque": deque, "OrderedDict": OrderedDict, "Counter": Counter,
}  # fmt: skip
_PATHS: dict[str, Any] = {
    "PurePosixPath": PurePosixPath, "PosixPath": PosixPath, "PureWindowsPath": PureWindowsPath,
    # Cannot be made on this system; the pure one has the same text.
    "WindowsPath": PureWindowsPath,
}  # fmt: skip
_SAVED_CLASS = "_pccheck_saved_class"
_CLASS_CACHE_COUNT = 256


@dataclass(frozen=True)
class SavedEnum:
    """A member of an enumeration whose class is not imported here. It is saved as what it was."""

    #: Module and qualified name, such as ``train:Phase``.
    class_name: str
    #: The member, or the members that a combination of flags has.
    name: str | tuple[str, ...]
    value: Any = None


def class_name(kind: type) -> str:
    """How the document names a class."""
    return f"{kind.__module__}:{kind.__qualname__}"


def class_named(name: Any) -> type | None:
    """The class of that name, when its module is imported; no code runs to find it."""
    module, _, path = str(name).partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part) if _is_namespace(found) else None
    return found if isinstance(found, type) else None


def _is_namespace(value: Any) -> bool:
    return isinstance(value, (type, type(sys)))


def _must_be_found(encoder: Any, value: Any, path: str) -> str:
    kind = type(value)
    name = class_name(kind)
    if class_named(name) is not kind:
        raise encoder.refusal(
            value, path, "its class cannot be found by its name; define it at the top of a module"
        )
    return name


# ---------------------------------------------------------------- paths, numbers, identifiers


def _encode_path(encoder: Any, value: Any, path: str) -> Any:
    return {"$path": str(value), "class": type(value).__name__}


def _decode_path(decoder: Any, document: dict[str, Any]) -> Any:
    return _PATHS[document["class"]](_text(document["$path"]))


def _encode_decimal(encoder: Any, value: Decimal, path: str) -> Any:
    return {"$decimal": str(value)}


def _encode_fraction(encoder: Any, value: Fraction, path: str) -> Any:
    return {"$fraction": encoder.encode([value.numerator, value.denominator], path)}


def _decode_fraction(decoder: Any, document: dict[str, Any]) -> Any:
    return Fraction(*_integers(decoder.decode(document["$fraction"]), 2))


def _encode_uuid(encoder: Any, value: UUID, path: str) -> Any:
    return {"$uuid": str(value)}


def _encode_range(encoder: Any, value: range, path: str) -> Any:
    return {"$range": encoder.encode([value.start, value.stop, value.step], path)}


def _decode_range(decoder: Any, document: dict[str, Any]) -> Any:
    return range(*_integers(decoder.decode(document["$range"]), 3))


def _encode_slice(encoder: Any, value: slice, path: str) -> Any:
    return {"$slice": encoder.encode([value.start, value.stop, value.step], path)}


def _decode_slice(decoder: Any, document: dict[str, Any]) -> Any:
    start, stop, step = decoder.decode(document["$slice"])
    return slice(start, stop, step)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"a {type(value).__name__} in the place of a text")
    return value


def _integers(values: Any, count: int) -> list[int]:
    if len(values) != count or any(type(value) is not int for value in values):
        raise ValueError(f"expected {count} integers")
    return list(values)


# ---------------------------------------------------------------- dates and times


def _encode_date(encoder: Any, value: date, path: str) -> Any:
    return {"$date": value.isoformat()}


def _encode_moment(encoder: Any, value: Any, path: str) -> Any:
    tag = "$datetime" if type(value) is datetime else "$time"
    node = {tag: value.replace(tzinfo=None, fold=0).isoformat()}
    if value.fold:
        node["fold"] = 1
    if value.tzinfo is not None:
        node["zone"] = encoder.encode(value.tzinfo, joined(path, "tzinfo"))
    return node


def _decode_moment(decoder: Any, document: dict[str, Any]) -> Any:
    tag = next(iter(document))
    kind: Any = datetime if tag == "$datetime" else time
    value = kind.fromisoformat(_text(document[tag]))
    zone = decoder.decode(document.get("zone"))
    if value.tzinfo is not None or not (zone is None or isinstance(zone, tzinfo)):
        raise ValueError("its zone is none")
    return value.replace(tzinfo=zone, fold=document.get("fold", 0))


def _encode_timedelta(encoder: Any, value: timedelta, path: str) -> Any:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _decode_timedelta(decoder: Any, document: dict[str, Any]) -> Any:
    return _timedelta(document["$timedelta"])


def _timedelta(parts: Any) -> timedelta:
    days, seconds, microseconds = _integers(parts, 3)
    return timedelta(days=days, seconds=seconds, microseconds=microseconds)


def _encode_timezone(encoder: Any, value: timezone, path: str) -> Any:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    node = {"$timezone": [offset.days, offset.seconds, offset.microseconds]}
    return {**node, "name": name[0]} if name else node


def _decode_timezone(decoder: Any, document: dict[str, Any]) -> Any:
    offset = _timedelta(document["$timezone"])
    return timezone(offset, _text(document["name"])) if "name" in document else timezone(offset)


def _encode_zone(encoder: Any, value: zoneinfo.ZoneInfo, path: str) -> Any:
    if value.key is None:
        raise encoder.refusal(value, path, "it has no name; make it with ZoneInfo(name)")
    return {"$zone": value.key}


def _decode_zone(decoder: Any, document: dict[str, Any]) -> Any:
    try:
        return zoneinfo.ZoneInfo(_text(document["$zone"]))
    except zoneinfo.ZoneInfoNotFoundError:
        raise UnsupportedState(
            f"this machine does not know the time zone {document['$zone']}: pip install tzdata"
        ) from None


# ---------------------------------------------------------------- containers


def _encode_deque(encoder: Any, value: deque[Any], path: str) -> Any:
    node: dict[str, Any] = {"$deque": encoder.encode_list(value, path)}
    return node if value.maxlen is None else {**node, "maxlen": value.maxlen}


def _decode_deque(decoder: Any, document: dict[str, Any]) -> Any:
    items = [decoder.decode(item) for item in document["$deque"]]
    limit = document.get("maxlen")
    if limit is not None and (type(limit) is not int or limit < len(items)):
        raise ValueError(f"{len(items)} items, at most {limit}")
    return deque(items, limit)


def _encode_defaultdict(encoder: Any, value: defaultdict[Any, Any], path: str) -> Any:
    factory = value.default_factory
    name = next((name for name, kind in _FACTORIES.items() if kind is factory), None)
    if factory is not None and name is None:
        raise encoder.refusal(
            value, path, f"its default_factory is none of {', '.join(_FACTORIES)}; save dict(…)"
        )
    return {"$defaultdict": encoder.encode_items(value, path), "factory": name}


def _decode_defaultdict(decoder: Any, document: dict[str, Any]) -> Any:
    name = document["factory"]
    factory = None if name is None else _FACTORIES[name]
    return defaultdict(factory, decoder.items(document["$defaultdict"]))


def is_namedtuple(kind: type) -> bool:
    """True for the classes that `namedtuple` and `NamedTuple` make."""
    fields = getattr(kind, "_fields", None)
    return (
        issubclass(kind, tuple) and isinstance(fields, tuple)
        and all(type(name) is str for name in fields)
    )  # fmt: skip


def _encode_namedtuple(encoder: Any, value: Any, path: str) -> Any:
    kind = type(value)
    fields = list(kind._fields)
    name = vars(kind).get(_SAVED_CLASS) or _must_be_found(encoder, value, path)
    if len(fields) != len(value) or getattr(value, "__dict__", None):
        raise encoder.refusal(value, path, "it is more than its fields; save tuple(…)")
    items = encoder.encode_list(value, path)
    return {"$namedtuple": items, "class": name, "fields": fields}


def _decode_namedtuple(decoder: Any, document: dict[str, Any]) -> Any:
    items = [decoder.decode(item) for item in document["$namedtuple"]]
    name, fields = _text(document["class"]), tuple(map(_text, document["fields"]))
    if len(items) != len(fields):
        raise ValueError(f"{len(items)} values for {len(fields)} fields")
    kind: Any = class_named(name)
    if kind is None or not is_namedtuple(kind) or kind._fields != fields:
        kind = _stand_in(name, fields)
    # Not `kind(*items)`: that would run what the class does when it is called.
    return tuple.__new__(kind, items)


@functools.lru_cache(_CLASS_CACHE_COUNT)
def _stand_in(name: str, fields: tuple[str, ...]) -> type:
    """A class of named tuples in the place of one that is not imported here, or has changed."""
    log.warning("the class %s of a saved named tuple is not here; one like it stands in", name)
    module, _, path = name.partition(":")
    last = path.rpartition(".")[2]
    is_usable = last.isidentifier() and not keyword.iskeyword(last)
    make: Any = namedtuple
    kind: type = make(last if is_usable else "Saved", fields, module=module)
    setattr(kind, _SAVED_CLASS, name)
    # Pickled by others, it is found by its name and its fields.
    setattr(kind, "__reduce__", lambda value: (_stood_in, (name, fields, tuple(value))))
    return kind


def _stood_in(name: str, fields: tuple[str, ...], items: tuple[Any, ...]) -> Any:
    return tuple.__new__(_stand_in(name, fields), items)


# ---------------------------------------------------------------- enumerations


def _encode_enum(encoder: Any, value: Enum, path: str) -> Any:
    name = _must_be_found(encoder, value, path)
    kind = type(value)
    members = kind._member_map_
    if members.get(value._name_) is value:
        node: dict[str, Any] = {"$enum": value._name_, "class": name}
    else:
        names = _flag_names(value)
        if names is None:
            raise encoder.refusal(value, path, "it is no member of its class; save its value")
        node = {"$enum": names, "class": name}
    if type(value.value) in (int, str, float, bool):
        node["value"] = encoder.encode(value.value, path)
    return node


def _flag_names(value: Enum) -> list[str] | None:
    """The members that make up a combination of flags."""
    if not isinstance(value, Flag):
        return None
    kind = type(value)
    names = [
        name
        for name, member in kind._member_map_.items()
        if name == member._name_ and member.value and member.value & value.value == member.value
    ]
    return names if _combined(kind, names) is value else None


def _combined(kind: Any, names: Any) -> Any:
    combined = kind(0)
    for name in names:
        combined |= kind._member_map_[name]
    return combined


def _decode_enum(decoder: Any, document: dict[str, Any]) -> Any:
    names, name = document["$enum"], _text(document["class"])
    given: Any = tuple(map(_text, names)) if isinstance(names, list) else _text(names)
    kind = class_named(name)
    if not isinstance(kind, EnumMeta):
        return _saved_enum(name, given, decoder.decode(document.get("value")))
    members = kind._member_map_
    missing = [item for item in ([given] if isinstance(given, str) else given)
               if item not in members]  # fmt: skip
    if missing:
        raise UnsupportedState(
            f"the enumeration {name} has no member '{missing[0]}' any more; give it one again"
        )
    if isinstance(given, str):
        return members[given]
    if not issubclass(kind, Flag):
        raise ValueError(f"{name} is no class of flags")
    return _combined(kind, given)


@functools.lru_cache(_CLASS_CACHE_COUNT)
def _warn_of_enum(name: str) -> None:
    log.warning("the class %s of a saved enumeration is not imported; SavedEnum stands in", name)


def _saved_enum(name: str, given: Any, value: Any) -> SavedEnum:
    _warn_of_enum(name)
    return SavedEnum(name, given, value)


def _encode_saved_enum(encoder: Any, value: SavedEnum, path: str) -> Any:
    names = value.name if isinstance(value.name, str) else list(value.name)
    node = {"$enum": names, "class": value.class_name}
    return node if value.value is None else {**node, "value": encoder.encode(value.value, path)}


# ---------------------------------------------------------------- all of them

#: What encodes a value of exactly this type; all of these can be keys, but those that change.
METHODS: dict[type, Callable[[Any, Any, str], Any]] = {
    PurePosixPath: _encode_path, PosixPath: _encode_path, PureWindowsPath: _encode_path,
    WindowsPath: _encode_path, Decimal: _encode_decimal, Fraction: _encode_fraction,
    UUID: _encode_uuid, range: _encode_range, slice: _encode_slice, date: _encode_date,
    datetime: _encode_moment, time: _encode_moment, timedelta: _encode_timedelta,
    timezone: _encode_timezone, zoneinfo.ZoneInfo: _encode_zone, deque: _encode_deque,
    defaultdict: _encode_defaultdict, SavedEnum: _encode_saved_enum,
}  # fmt: skip
#: Never a key, whatever its contents are.
_NO_KEYS = {slice, deque, defaultdict}


def method_for(value: Any) -> Callable[[Any, Any, str], Any] | None:
    """What encodes a value of a class that its program made."""
    if isinstance(value, Enum):
        return _encode_enum
    if isinstance(value, tuple) and is_namedtuple(type(value)):
        return _encode_namedtuple
    return None


def key_method_for(value: Any) -> Callable[[Any, Any, str], Any] | None:
    """What encodes a key."""
    kind = type(value)
    return method_for(value) or (None if kind in _NO_KEYS else METHODS.get(kind))


TAGS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "$path": _decode_path,
    "$decimal": lambda decoder, document: Decimal(_text(document["$decimal"])),
    "$fraction": _decode_fraction,
    "$uuid": lambda decoder, document: UUID(_text(document["$uuid"])),
    "$range": _decode_range,
    "$slice": _decode_slice,
    "$date": lambda decoder, document: date.fromisoformat(_text(document["$date"])),
    "$datetime": _decode_moment,
    "$time": _decode_moment,
    "$timedelta": _decode_timedelta,
    "$timezone": _decode_timezone,
    "$zone": _decode_zone,
    "$deque": _decode_deque,
    "$defaultdict": _decode_defaultdict,
    "$namedtuple": _decode_namedtuple,
    "$enum": _decode_enum,
}
