"""How a nest of Python values becomes a JSON document and named tensors: spec/STATE.md."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .._core.tensors import TensorEntry
from . import generators, kinds
from .document import document_text
from .nesting import NESTING_LIMIT, endless, joined
from .refusing import key_refusal, refusal, refuse_attributes
from .stored import EXTENSION_TO_STORED, NUMPY_TO_STORED

#: Longer byte strings are stored as tensors, so that the document stays small.
INLINE_BYTES_LIMIT = 1024
NAME_BYTE_LIMIT = 4096
#: Smaller arrays are copied; the memory of larger ones is read in place.
_COPIED_ARRAY_LIMIT = 64 << 10
#: Integers that every JSON reader keeps exactly.
_PLAIN_INTEGER_LIMIT = 1 << 53
_CANONICAL_NAN = struct.pack("<d", math.nan)


class _TooDeep(Exception):
    """More containers within containers than there may be."""


class Encoder:
    """Turns one state into a JSON-able document and the tensors that it refers to."""

    #: What encodes a value of exactly this type.
    methods: dict[type, Callable[[Any, Any, str], Any]] = {}

    def __init__(self) -> None:
        self.entries: list[TensorEntry] = []
        #: More metadata of the payload.
        self.metadata: dict[str, str] = {}
        #: Arrays, by identity, that nobody else will change.
        self.private: set[int] = set()
        self._names: set[str] = {"__metadata__"}
        # How many containers are being encoded, one within the other.
        self._level = 0
        # Arrays met before, so that one that appears twice is stored once.
        self._array_names: dict[object, str] = {}
        # Their addresses are theirs as long as they live.
        self._arrays: list[np.ndarray] = []

    def encode_state(self, value: object) -> Any:
        """The JSON form of a state; its tensors are appended to ``entries``."""
        try:
            return self.encode(value, "")
        except (RecursionError, _TooDeep):
            raise endless(value) from None

    def encode_text(self, value: object) -> str:
        """The text of the JSON form of a state; its tensors are appended to ``entries``."""
        return document_text(self.encode_state(value))

    def encode(self, value: object, path: str) -> Any:
        """The JSON form of the value at a key path."""
        kind = type(value)
        method = self.methods.get(kind)
        if method is not None:
            return method(self, value, path)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return _encode_int(value)  # type: ignore[arg-type]
        if kind is float:
            return _encode_float(value)  # type: ignore[arg-type]
        if isinstance(value, np.generic):
            return self._encode_numpy_scalar(value, path)
        if isinstance(value, np.ndarray):
            return self._encode_array(value, path)
        method = kinds.method_for(value)
        return method(self, value, path) if method else self.encode_other(value, path)

    def encode_other(self, value: object, path: str) -> Any:
        """Anything else: what has the buffer protocol is an array, the rest is refused."""
        try:
            if isinstance(value, (bytes, bytearray)):
                raise TypeError
            view = memoryview(value)  # type: ignore[arg-type]
        except TypeError:
            raise self.refusal(value, path) from None
        try:
            array = np.asarray(view)
        except (TypeError, ValueError) as error:
            raise self.refusal(value, path, str(error)) from None
        return self._encode_array(array, path)

    def refusal(self, value: object, path: str, reason: str | None = None) -> TypeError:
        """The error for a value that cannot be stored exactly."""
        return refusal(value, path, reason)

    # -- containers

    def _encode_dict(self, value: dict[Any, Any], path: str) -> Any:
        content = self.encode_items(value, path)
        return content if type(content) is dict else {"$dict": content}

    def encode_items(self, value: dict[Any, Any], path: str) -> Any:
        """An object when every key is a plain string, else a list of pairs."""
        self._enter()
        content = self._items(value, path)
        self._level -= 1
        return content

    def _enter(self) -> None:
        self._level += 1
        if self._level > NESTING_LIMIT:
            raise _TooDeep

    def _items(self, value: dict[Any, Any], path: str) -> Any:
        if are_names(value):
            # As `joined`, which is called too often for a call.
            prefix = f"{path}." if path else ""
            find, encode = self.methods.get, self.encode
            return {
                key: method(self, item, prefix + key) if (method := find(type(item)))
                else encode(item, prefix + key)
                for key, item in value.items()
            }  # fmt: skip
        return [
            [self._encode_key(key, path), self.encode(item, joined(path, key))]
            for key, item in value.items()
        ]

    def _encode_key(self, key: object, path: str) -> Any:
        if type(key) in (str, int, float, bool, bytes, complex, type(None)):
            return self.encode(key, path)
        if type(key) is tuple:
            return {"$tuple": self._encode_keys(key, path)}
        if isinstance(key, np.generic):
            return self._encode_numpy_scalar(key, path)
        if type(key) is frozenset:
            return self._encode_set(key, path)
        method = kinds.key_method_for(key)
        if method is None:
            raise key_refusal(key, path)
        return method(self, key, path)

    def _encode_keys(self, keys: Iterable[Any], path: str) -> list[Any]:
        self._enter()
        items = [self._encode_key(key, path) for key in keys]
        self._level -= 1
        return items

    def _encode_ordered(self, value: OrderedDict[Any, Any], path: str) -> Any:
        refuse_attributes(value, path, {"_metadata"})
        document = {"$ordered": self.encode_items(value, path)}
        # torch keeps the versions of a module's parts in an attribute of its state.
        attribute = getattr(value, "_metadata", None)
        if attribute is not None:
            document["_metadata"] = self.encode(attribute, joined(path, "_metadata"))
        return document

    def _encode_counter(self, value: Counter[Any], path: str) -> Any:
        refuse_attributes(value, path)
        return {"$counter": self.encode_items(value, path)}

    def encode_list(self, value: Iterable[Any], path: str) -> Any:
        """The list of the nodes of some items."""
        self._enter()
        items = [self.encode(item, joined(path, index)) for index, item in enumerate(value)]
        self._level -= 1
        return items

    def _encode_tuple(self, value: tuple[Any, ...], path: str) -> Any:
        return {"$tuple": self.encode_list(value, path)}

    def _encode_set(self, value: set[Any] | frozenset[Any], path: str) -> Any:
        # A set has no order; sorting the encoded items makes equal states equal documents.
        items = sorted(self._encode_keys(value, path), key=_canonical_text)
        return {"$frozenset" if type(value) is frozenset else "$set": items}

    def _encode_bytes(self, value: bytes | bytearray, path: str) -> Any:
        tag = "$bytearray" if type(value) is bytearray else "$bytes"
        if len(value) <= INLINE_BYTES_LIMIT:
            return {tag: base64.b64encode(value).decode("ascii")}
        # A bytearray may change after save() returns, and nobody waits for it: copy it.
        array = np.frombuffer(bytes(value), np.uint8)
        name = self.add_array(array, "U8", array.shape, path)
        self.entries[-1].is_copy = True
        return {tag: {"tensor": name}}

    def _encode_complex(self, value: complex, path: str) -> Any:
        return {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}

    # -- arrays

    def _encode_numpy_scalar(self, value: np.generic, path: str) -> Any:
        dtype = value.dtype
        # The layout of a long double is the machine's own.
        if dtype.kind not in "biufcmM" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
            reason = "this NumPy type has no portable stored form"
            raise self.refusal(value, path, None if dtype.kind in "US" else reason)
        content = base64.b64encode(value.tobytes()).decode("ascii")
        return {"$scalar": dtype.str, "bytes": content}

    def _encode_array(self, value: np.ndarray, path: str) -> Any:
        if type(value) not in (np.ndarray, np.memmap):
            raise self.refusal(value, path, "convert this array subclass to a plain ndarray")
        key = (value.ctypes.data, value.shape, value.strides, value.dtype.str)
        known = self._array_names.get(key) if value.nbytes else None
        stored, shape, words, tag = self._stored_form(value, path)
        if known is None:
            is_copy = words is not value or id(value) in self.private
            if not is_copy and words.nbytes <= _COPIED_ARRAY_LIMIT:
                # Cheaper than to wait until it is staged.
                words, is_copy = words.copy(), True
            known = self.add_array(words, stored, shape, path)
            self.entries[-1].is_copy = is_copy
            self._array_names[key] = known
            self._arrays.append(value)
        return {"$array": known, "dtype": tag} if tag else {"$array": known}

    def _stored_form(
        self, value: np.ndarray, path: str
    ) -> tuple[str, tuple[int, ...], np.ndarray, str | None]:
        """Stored type, stored shape, contiguous array, and the type's name if it needs one."""
        dtype = value.dtype
        array = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        stored = NUMPY_TO_STORED.get(dtype.str)
        if stored is not None:
            return stored, value.shape, array, None
        if dtype.byteorder == ">" and dtype.kind in "biufcmM":
            array = array.astype(dtype.newbyteorder("<"))
        if dtype.kind == "c" and dtype.itemsize in (8, 16):
            return ("F32" if dtype.itemsize == 8 else "F64"), (*value.shape, 2), array, dtype.str
        if dtype.kind in "mM":
            return "I64", value.shape, array, dtype.str
        if dtype.name in EXTENSION_TO_STORED:
            return EXTENSION_TO_STORED[dtype.name], value.shape, array, dtype.name
        stored = NUMPY_TO_STORED.get(dtype.newbyteorder("<").str)
        if stored is None or dtype.kind not in "biuf":
            raise self.refusal(
                value, path, f"its type {dtype} is not boolean, integer, float, complex or time"
            )
        return stored, value.shape, array, dtype.str

    def add_array(
        self, array: np.ndarray, stored: str, shape: tuple[int, ...], path: str
    ) -> str:
        """Stores contiguous memory under the name of its path."""
        return self.add(stored, shape, array.ctypes.data, array.nbytes, array, path)

    def add(
        self,
        stored: str,
        shape: tuple[int, ...],
        address: int,
        byte_count: int,
        owner: object,
        path: str,
    ) -> str:
        """Stores memory under the name of its path, made unique; returns the name."""
        name = self._unique_name(path)
        self.entries.append(TensorEntry(name, stored, shape, address, byte_count, owner))
        return name

    def _unique_name(self, path: str) -> str:
        base = path or "value"
        is_plain = base.isascii() and base.isprintable() and len(base) < NAME_BYTE_LIMIT
        if is_plain and base not in self._names:
            self._names.add(base)
            return base
        encoded = base.replace("\0", "\\0").encode("utf-8", "backslashreplace")
        # Room is left for the suffix; a cut may not split a character.
        base = encoded[: NAME_BYTE_LIMIT - 16].decode("utf-8", "ignore")
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}~{number}"
        self._names.add(name)
        return name


Encoder.methods = {
    dict: Encoder._encode_dict,
    OrderedDict: Encoder._encode_ordered,
    Counter: Encoder._encode_counter,
    list: Encoder.encode_list,
    tuple: Encoder._encode_tuple,
    set: Encoder._encode_set,
    frozenset: Encoder._encode_set,
    bytes: Encoder._encode_bytes,
    bytearray: Encoder._encode_bytes,
    complex: Encoder._encode_complex,
    **kinds.METHODS,
    **generators.METHODS,
}


def are_names(keys: Iterable[Any]) -> bool:
    """True when every key is a plain string that no tag begins with."""
    if not set(map(type, keys)) <= {str}:
        return False
    # One look at all of them tells for nearly every state.
    return "$" not in "".join(keys) or not any(key.startswith("$") for key in keys)


def _encode_int(value: int) -> Any:
    if -_PLAIN_INTEGER_LIMIT < value < _PLAIN_INTEGER_LIMIT:
        return value
    # Hexadecimal: Python limits how long a decimal text it converts.
    return {"$int": hex(value)}


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    if math.isinf(value):
        return {"$float": "inf" if value > 0 else "-inf"}
    bits = struct.pack("<d", value)
    return {"$float": "nan" if bits == _CANONICAL_NAN else "nan:" + bits.hex()}


def _canonical_text(document: Any) -> str:
    return json.dumps(document, sort_keys=True)
