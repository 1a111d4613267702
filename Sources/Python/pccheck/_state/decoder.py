"""How a JSON document and stored tensors become a nest of Python values again."""

from __future__ import annotations

import base64
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StateFormatError, UnsupportedState
from . import generators, kinds
from .stored import (
    EXTENSION_ITEM_SIZE,
    STORED_TO_EXTENSION,
    STORED_TO_NUMPY,
    StoredTensor,
    View,
    array_type,
    extension_dtype,
)

#: What content that its type cannot have raises.
_DECODING_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip


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
            raise StateFormatError(f"the state document has a damaged {tag}: {error}") from error

    def decode_other(self, tag: str, document: dict[str, Any]) -> Any:
        """Tags of torch values, read without torch."""
        if tag == "$tensor":
            return self._torch_tensor(document)
        if tag == "$view":
            return self._torch_view(document)
        if tag == "$sharded":
            content = document[tag]
            boxes = [{**box, "local": self.decode(box["local"])} for box in content["boxes"]]
            return TorchValue(tag, {**content, "boxes": boxes})
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
