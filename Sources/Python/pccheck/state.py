"""The state document: how a nest of Python values becomes JSON and named tensors, and back.

Tensors and arrays are stored under readable names; everything else is one JSON document that
refers to them. Every value comes back with the type it had. What cannot be stored exactly is a
``TypeError`` that names the key. Nothing is ever pickled. The layout is specified in
spec/STATE.md.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._state import generators, kinds
from ._state.nesting import NESTING_LIMIT, endless, joined
from ._state.refusing import key_refusal, refusal, refuse_attributes, refuse_pairs
from ._state.stored import (
    EXTENSION_ITEM_SIZE,
    EXTENSION_TO_STORED,
    NUMPY_TO_STORED,
    STORED_TO_EXTENSION,
    STORED_TO_NUMPY,
    StoredTensor,
    View,
    array_type,
    extension_dtype,
)
from .errors import StateFormatError, UnsupportedState

#: Key of the document in the safetensors ``__metadata__``.
DOCUMENT_KEY = "pccheck.state"
VERSION = 1
#: Longer byte strings are stored as tensors, so that the document stays small.
INLINE_BYTES_LIMIT = 1024
NAME_BYTE_LIMIT = 4096
#: Smaller arrays are copied; the memory of larger ones is read in place.
_COPIED_ARRAY_LIMIT = 64 << 10
#: Integers that every JSON reader keeps exactly.
_PLAIN_INTEGER_LIMIT = 1 << 53
#: What content that its type cannot have raises.
_DECODING_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip
_CANONICAL_NAN = struct.pack("<d", math.nan)

@dataclass(slots=True)
class TensorEntry:
    """One tensor to be stored: its name, its type and where its bytes are."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    address: int
    byte_count: int
    #: Whatever owns the memory; kept until the checkpoint is staged.
    owner: object
    #: Nobody but the encoder knows this memory.
    is_copy: bool = False
    #: Whatever changes this memory waits until it is staged, or is noticed.
    is_guarded: bool = False


@dataclass(frozen=True)
class RawTensor:
    """A tensor of a type that NumPy does not have, as its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True)
class TorchValue:
    """A value that only torch can represent, read without torch: its tag and its content."""

    tag: str
    content: Any


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
        """The JSON form of a whole state; its tensors are appended to ``entries``."""
        try:
            return self.encode(value, "")
        except (RecursionError, _TooDeep):
            raise endless(value) from None

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
        if all([type(key) is str and key[:1] != "$" for key in value]):
            # As `joined`, which is called too often for a call.
            prefix = f"{path}." if path else ""
            return {key: self.encode(item, prefix + key) for key, item in value.items()}
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


def document_text(root: Any) -> str:
    """The text that is stored: ASCII, so that every string survives any UTF-8 handling."""
    text = json.dumps({"version": VERSION, "state": root}, allow_nan=False, separators=(",", ":"))
    refuse_pairs(root, text)
    return text


def parse_document(text: str) -> Any:
    """The root of a stored document."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"the state document is not JSON: {error}") from None
    if not isinstance(document, dict) or "state" not in document:
        raise StateFormatError(
            "the state document has no 'state'; was the file written by pccheck?"
        )
    version = document.get("version")
    if type(version) is not int:
        raise StateFormatError(f"the state document has the version {version!r}, no number")
    if version != VERSION:
        raise UnsupportedState(
            f"the state document has version {version!r}; this package reads {VERSION}: install "
            "a newer pccheck"
        )
    return document["state"]


class Decoder:
    """Builds the state again from its document and the loaded tensors."""

    def __init__(
        self, tensors: dict[str, StoredTensor], made: dict[object, Any] | None = None
    ) -> None:
        """`made` are the live objects that were filled in place, under their keys."""
        self.tensors = tensors
        # One object per reference kind and name: what was tied is tied again.
        self._made: dict[object, Any] = dict(made or {})

    def decode(self, document: Any) -> Any:
        """The value of a document's node."""
        kind = type(document)
        if kind is list:
            return [self.decode(item) for item in document]
        if kind is not dict:
            return document
        tag = next(iter(document), "")
        if not tag.startswith("$"):
            return {key: self.decode(item) for key, item in document.items()}
        method = _TAGS.get(tag)
        try:
            return self.decode_other(tag, document) if method is None else method(self, document)
        except RecursionError:
            raise
        except _DECODING_ERRORS as error:
            raise StateFormatError(f"the state document has a broken {tag}: {error}") from error

    def decode_other(self, tag: str, document: dict[str, Any]) -> Any:
        """Tags of torch values, read without torch."""
        if tag == "$tensor":
            return self._torch_tensor(document)
        if tag == "$view":
            return self._torch_view(document)
        if tag == "$dtensor" and isinstance(document[tag], dict):
            content = document[tag]
            return TorchValue(tag, {**content, "local": self.decode(content.get("local"))})
        if tag.startswith("$torch."):
            return TorchValue(tag, document[tag])
        raise UnsupportedState(
            f"the state document has the unknown tag {tag}; install a newer pccheck"
        )

    def stored(self, name: str) -> StoredTensor:
        """The loaded tensor of a reference."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise StateFormatError(f"the state document names a tensor '{name}' that is not stored")
        return tensor

    def bytes_of(self, tensor: StoredTensor) -> np.ndarray:
        """The memory of a loaded tensor as a one-dimensional uint8 array."""
        memory: np.ndarray = tensor.memory
        return memory

    def made_once(self, key: object, make: Callable[[], Any]) -> Any:
        """One object for every reference with this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # -- containers

    def items(self, content: Any) -> list[tuple[Any, Any]]:
        if isinstance(content, dict):
            return [(key, self.decode(item)) for key, item in content.items()]
        return [(self.decode(key), self.decode(item)) for key, item in content]

    def _dict(self, document: dict[str, Any]) -> Any:
        return dict(self.items(document["$dict"]))

    def _ordered(self, document: dict[str, Any]) -> Any:
        value: OrderedDict[Any, Any] = OrderedDict(self.items(document["$ordered"]))
        if "_metadata" in document:
            value._metadata = self.decode(document["_metadata"])  # type: ignore[attr-defined]
        return value

    def _counter(self, document: dict[str, Any]) -> Any:
        return Counter(dict(self.items(document["$counter"])))

    def _tuple(self, document: dict[str, Any]) -> Any:
        return tuple(self.decode(item) for item in document["$tuple"])

    def _set(self, document: dict[str, Any]) -> Any:
        return {self.decode(item) for item in document["$set"]}

    def _frozenset(self, document: dict[str, Any]) -> Any:
        return frozenset(self.decode(item) for item in document["$frozenset"])

    # -- scalars

    def _bytes(self, document: dict[str, Any]) -> Any:
        return self._byte_content(document["$bytes"])

    def _bytearray(self, document: dict[str, Any]) -> Any:
        return bytearray(self._byte_content(document["$bytearray"]))

    def _byte_content(self, content: Any) -> bytes:
        if isinstance(content, str):
            return base64.b64decode(content, validate=True)
        return self.bytes_of(self.stored(content["tensor"])).tobytes()

    def _int(self, document: dict[str, Any]) -> Any:
        return int(document["$int"], 16)

    def _float(self, document: dict[str, Any]) -> Any:
        text = document["$float"]
        if text.startswith("nan:"):
            return struct.unpack("<d", bytes.fromhex(text[4:]))[0]
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text]

    def _complex(self, document: dict[str, Any]) -> Any:
        real, imaginary = (self.decode(part) for part in document["$complex"])
        return complex(real, imaginary)

    def _scalar(self, document: dict[str, Any]) -> Any:
        dtype = np.dtype(document["$scalar"])
        if dtype.hasobject:
            raise ValueError("a scalar of object type")
        content = base64.b64decode(document["bytes"], validate=True)
        if len(content) != dtype.itemsize:
            raise ValueError(f"{len(content)} bytes for {dtype}")
        return np.frombuffer(content, dtype)[0]

    # -- arrays

    def _array(self, document: dict[str, Any]) -> Any:
        name, tag = document["$array"], document.get("dtype")
        return self.made_once(("array", name, tag), lambda: self._make_array(name, tag))

    def _make_array(self, name: str, tag: str | None) -> Any:
        tensor = self.stored(name)
        memory = self.bytes_of(tensor)
        dtype, shape = array_type(tensor, tag)
        if dtype.byteorder == ">":
            return memory.view(dtype.newbyteorder("<")).reshape(shape).astype(dtype)
        return memory.view(dtype).reshape(shape)

    def _torch_tensor(self, document: dict[str, Any]) -> Any:
        """A torch tensor as the nearest NumPy array, or as raw bytes."""
        name, tag = document["$tensor"], document.get("dtype")

        def make() -> Any:
            tensor = self.stored(name)
            memory = self.bytes_of(tensor)
            if tag in ("complex64", "complex128"):
                return memory.view(tag).reshape(tensor.shape[:-1])
            if tag is not None:
                return RawTensor(tag, tensor.shape, memory)
            if tensor.stored_dtype in STORED_TO_EXTENSION:
                extension = STORED_TO_EXTENSION[tensor.stored_dtype]
                try:
                    return memory.view(extension_dtype(extension)).reshape(tensor.shape)
                except StateFormatError:
                    return RawTensor(extension, tensor.shape, memory)
            return memory.view(STORED_TO_NUMPY[tensor.stored_dtype]).reshape(tensor.shape)

        return self.made_once(("tensor", name, tag), make)

    def _torch_view(self, document: dict[str, Any]) -> Any:
        """A torch tensor that shares its memory with others, in the same way."""
        view = View(document)
        tensor = self.stored(view.name)
        size = EXTENSION_ITEM_SIZE.get(view.dtype)
        try:
            # What NumPy does not have is taken apart as items without a meaning.
            dtype = np.dtype(view.dtype if size is None else f"V{size}")
            if size is None and dtype.kind not in "biufc":
                raise TypeError
        except TypeError:
            raise StateFormatError(
                f"the state document views '{view.name}' as {view.dtype}, which is no type of views"
            ) from None
        view.check(dtype.itemsize, tensor)
        memory = self.bytes_of(tensor)
        end = view.offset + (memory.nbytes - view.offset) // dtype.itemsize * dtype.itemsize
        words = memory[view.offset : end].view(dtype)
        steps = [step * dtype.itemsize for step in view.stride]
        items = np.lib.stride_tricks.as_strided(words, view.shape, steps)
        if size is None:
            return items
        dense = np.ascontiguousarray(items).reshape(-1).view(np.uint8)
        return RawTensor(view.dtype, view.shape, dense)


_TAGS: dict[str, Callable[[Decoder, dict[str, Any]], Any]] = {
    "$dict": Decoder._dict,
    "$ordered": Decoder._ordered,
    "$counter": Decoder._counter,
    "$tuple": Decoder._tuple,
    "$set": Decoder._set,
    "$frozenset": Decoder._frozenset,
    "$bytes": Decoder._bytes,
    "$bytearray": Decoder._bytearray,
    "$int": Decoder._int,
    "$float": Decoder._float,
    "$complex": Decoder._complex,
    "$scalar": Decoder._scalar,
    "$array": Decoder._array,
    **kinds.TAGS,
    **generators.TAGS,
}
