"""Tensors as they are stored: their types, and the views of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StateFormatError, UnsupportedState

# Sizes and strides of views are below this, so that their sums and products fit 64 bits.
_VIEW_LIMIT = 1 << 48

# NumPy types that the safetensors format has a name for.
NUMPY_TO_STORED = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<f2": "F16",
    "<u4": "U32", "<i4": "I32", "<f4": "F32", "<u8": "U64", "<i8": "I64", "<f8": "F64",
}  # fmt: skip
STORED_TO_NUMPY = {stored: np.dtype(name) for name, stored in NUMPY_TO_STORED.items()}
# Types of the ml_dtypes package, known to NumPy once it is imported.
EXTENSION_TO_STORED = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
STORED_TO_EXTENSION = {stored: name for name, stored in EXTENSION_TO_STORED.items()}
EXTENSION_ITEM_SIZE = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
#: Element sizes of the stored types, in bytes.
STORED_ITEM_SIZE = {
    **{stored: dtype.itemsize for stored, dtype in STORED_TO_NUMPY.items()},
    "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(slots=True)
class StoredTensor:
    """A tensor as loaded: its entry in the manifest, and its verified bytes."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    #: One-dimensional uint8 array, or for torch a uint8 tensor: fresh memory, or the caller's.
    memory: Any = None
    #: Where its bytes begin in the payload.
    payload_offset: int = 0

    @property
    def byte_count(self) -> int:
        """What type and shape take."""
        return STORED_ITEM_SIZE[self.stored_dtype] * math.prod(self.shape)


class View:
    """A `$view` node: elements of a stored tensor that other nodes see in another way."""

    def __init__(self, node: dict[str, Any]) -> None:
        try:
            self.name: str = node["$view"]
            self.dtype: str = node["dtype"]
            self.offset: int = node["offset"]
            self.shape = tuple(node["shape"])
            self.stride = tuple(node["stride"])
        except (KeyError, TypeError) as error:
            raise StateFormatError(f"the state document has a damaged $view: {error}") from None
        numbers = (self.offset, *self.shape, *self.stride)
        is_whole = all(type(n) is int and 0 <= n < _VIEW_LIMIT for n in numbers)
        names_fit = type(self.name) is str and type(self.dtype) is str
        if not is_whole or not names_fit or len(self.shape) != len(self.stride):
            raise StateFormatError(
                f"the state document has a damaged $view of '{self.name}': its numbers make no view"
            )

    def check(self, item_size: int, tensor: StoredTensor) -> None:
        """Raises when the view reaches outside of the tensor, or is not aligned in it."""
        steps = zip(self.shape, self.stride, strict=True)
        last = sum((count - 1) * step for count, step in steps) if math.prod(self.shape) else -1
        end = self.offset + (last + 1) * item_size
        is_too_large = math.prod(self.shape) >= _VIEW_LIMIT
        if end > tensor.byte_count or self.offset % item_size or is_too_large:
            raise StateFormatError(
                f"the state document views '{self.name}' up to byte {end}, but it has "
                f"{tensor.byte_count}, in items of {item_size}"
            )


def array_type(tensor: StoredTensor, tag: str | None) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the array that a `$array` node with this tag describes."""
    if tag is None:
        extension = STORED_TO_EXTENSION.get(tensor.stored_dtype)
        if extension is not None:
            return extension_dtype(extension), tensor.shape
        return STORED_TO_NUMPY[tensor.stored_dtype], tensor.shape
    dtype = dtype_named(tag, tensor.name)
    return dtype, (tensor.shape[:-1] if dtype.kind == "c" else tensor.shape)


def dtype_named(name: str, tensor: str) -> np.dtype[Any]:
    """The type of a name, which a document has of a tensor."""
    try:
        dtype = extension_dtype(name) if name in EXTENSION_TO_STORED else np.dtype(name)
    except TypeError:
        raise UnsupportedState(
            f"tensor '{tensor}' was saved as an array of type {name}, which this NumPy does not "
            "have; install a newer one"
        ) from None
    if dtype.hasobject:
        raise ValueError("an array of object type")
    return dtype


def extension_dtype(name: str) -> np.dtype[Any]:
    """A type of the package ml_dtypes."""
    try:
        import ml_dtypes  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UnsupportedState(
            f"an array of type {name} needs the package ml_dtypes: pip install ml_dtypes"
        ) from None
    try:
        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    except AttributeError:
        raise UnsupportedState(
            f"an array of type {name} needs a newer ml_dtypes: pip install -U ml_dtypes"
        ) from None
    return dtype
